"""Plans the cells of an experiment from its grid."""
