"""`python -m trueport.pipeline.cli`: the same as the console script."""

from . import main

main()
