"""Where the curves and pictures of a training go: TensorBoard, Weights & Biases, MLflow, trackio."""
