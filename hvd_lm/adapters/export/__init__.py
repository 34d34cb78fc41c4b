"""Writers of weights for other libraries, one for each."""
