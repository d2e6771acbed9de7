"""Inventory networks: simulators, classical policies and solvers live here."""
