"""Building an index: embed, write, resume, compress, save."""
