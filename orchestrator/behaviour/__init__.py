"""The behaviour layer: builds examples, trains LoRA adapters on them, measures, judges, registers and proves them."""
