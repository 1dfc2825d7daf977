"""Set functions of other things than components in, set functions with labelled units out."""
