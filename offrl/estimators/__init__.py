"""Losses shared by many methods: pure functions of tensors."""
