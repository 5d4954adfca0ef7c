"""What the train stage is made of, one concept a file."""
