"""Datasets: readers, writers, transitions, normalization, reference scores and neighbours."""
