"""Starts what runs beside us on this machine: PostgreSQL, vLLM under a supervisor, and the model weights they need."""
