"""The parts of the tune stage: the space of candidates, the search through it, the measuring, the front."""
