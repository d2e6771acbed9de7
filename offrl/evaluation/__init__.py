"""Rollouts, scores, aggregates and reports."""
