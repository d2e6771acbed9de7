"""Diffusion and flow matching: parameterizations, schedules, steppers, EDM, denoiser networks and their training.

Every model here is a Gaussian path x = alpha x0 + sigma eps. With u = x / alpha and rho = sigma / alpha all of them are
the one process u = x0 + rho eps, so that two models are at the same noise level if and only if their rho agree.
"""
