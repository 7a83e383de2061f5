"""One adaptation strategy per file: which parts of the encoder train, and how fast."""
