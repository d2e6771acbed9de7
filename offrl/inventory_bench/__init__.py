"""The inventory benchmark: which policies are measured on which settings, how, and what is drawn of it."""
