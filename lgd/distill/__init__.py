"""Label-guided self-distillation: label encoder, teacher, distiller, schedule."""
