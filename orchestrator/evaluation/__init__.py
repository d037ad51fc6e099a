"""Measures the system on questions whose answers are known: sets, metrics, and what is learnt from them."""
