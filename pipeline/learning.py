"""Seeds."""

from .seeds import derived_seed as derived_seed
