"""The knowledge layer: documents become chunks and vectors in PostgreSQL, and questions find them again."""
