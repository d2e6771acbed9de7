"""What methods that learn in an environment share; they are stable-baselines3 algorithms (extra ``sb3``)."""
