"""What distillation gains: many trainings, paired, and what comes out of them as a page."""
