"""Exact optima and bounds of inventory systems: NumPy and SciPy, one module a problem, no PyTorch.

Timing, in all of them: orders are placed, demand of the period is served, cost is charged on what is left (holding) and
on what is missing (penalty). An order with lead time L serves the demand L periods later, so that L + 1 periods of
demand lie between an order and the cost that it can change. Stock on its way is free. Costs are per period.
"""
