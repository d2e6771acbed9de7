"""Trained policies as files for other programs: ONNX, ``torch.export``, stable-baselines3."""
