"""The computations of an evaluation: shrinking pictures as the literature does, and measuring how far two pictures are apart."""
