"""Local attention: the definition, at any queries, and on a dense grid."""
