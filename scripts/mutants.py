"""Breaks the package on purpose, one place at a time, and says which test notices.

    python scripts/mutants.py [WORD ...]     only the mutants whose file or texts hold one of the words

Each pair in the table below is applied alone to a temporary copy of the package, and the tests of that file
are run until one fails: killed. A mutant that no test notices survived, and the exit code is 1. A text that
is not found exactly once in its file means that the table is out of date.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch._dynamo  # loaded once here instead of in every child

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300  # a mutant may make a test hang

TESTS = {  # file -> its tests
    "nn/mlp.py": "nn/test_mlp.py",
    "nn/trainable.py": "nn/test_trainable.py",
    "nn/gradients.py": "nn/test_trainable.py",
    "nn/precision.py": "nn/test_precision.py",
    "nn/actor_critic.py": "nn/test_actor_critic.py",
    "nn/normed.py": "nn/test_normed.py",
    "nn/vae.py": "nn/test_vae.py",
    "estimators/bellman.py": "estimators/test_bellman.py",
    "estimators/likelihood.py": "estimators/test_likelihood.py",
    "estimators/pathwise.py": "estimators/test_pathwise.py",
    "estimators/grad_surgery.py": "estimators/test_grad_surgery.py",
    "estimators/dice.py": "estimators/test_dice.py",
    "nn/gaussian.py": "nn/test_gaussian.py",
    "algos/__init__.py": "algos/test_every_algorithm.py",
    "algos/bc.py": "algos/test_bc.py",
    "algos/td3_bc.py": "algos/test_td3_bc.py",
    "algos/iql.py": "algos/test_iql.py",
    "algos/prdc.py": "algos/test_prdc.py",
    "algos/a2pr.py": "algos/test_a2pr.py",
    "algos/rebrac.py": "algos/test_rebrac.py",
    "algos/odice.py": "algos/test_odice.py",
    "algos/awac.py": "algos/test_awac.py",
    "data/join.py": "data/test_join.py",
    "fitted_q.py": "test_fitted_q.py",
    "data/normalize.py": "data/test_normalize.py",
    "data/source.py": "data/test_source.py",
    "training/seeding.py": "training/test_seeding.py",
    "training/check.py": "training/test_check.py",
    "estimators/hvp.py": "estimators/test_hvp.py",
    "estimators/transforms.py": "estimators/test_transforms.py",
    "algos/n_pg_igt.py": "algos/test_n_pg_igt.py",
    "algos/harpg.py": "algos/test_harpg.py",
    "algos/policy_gradient.py": "algos/test_policy_gradient.py",
    "online/policy_gradient.py": "online/test_policy_gradient.py",
    "online/policies.py": "online/test_policies.py",
    "online/acting.py": "online/test_every_online_algorithm.py",
    "online/run_callback.py": "online/test_runner.py",
    "online/checkpoint.py": "online/test_runner.py",
    "online/replayable.py": "online/test_replayable.py",
    "online/vector.py": "online/test_vector.py",
    "estimators/advantages.py": "estimators/test_advantages.py",
    "estimators/ratios.py": "estimators/test_recipes.py",
    "estimators/compose.py": "estimators/test_compose.py",
    "estimators/regularizers.py": "estimators/test_regularizers.py",
    "estimators/low_memory.py": "estimators/test_low_memory.py",
    "estimators/mixture.py": "estimators/test_mixture.py",
    "online/actor_critic.py": "online/test_actor_critic.py",
    "online/off_policy.py": "online/test_off_policy.py",
    "online/on_policy.py": "online/test_on_policy.py",
    "online/mixture.py": "online/test_mixture.py",
    "online/rate.py": "online/test_rate.py",
    "online/options.py": "sweeps/test_online.py",
    "training/cells.py": "sweeps/test_online.py",
    "training/sweep.py": "sweeps/test_online.py",
    "algos/mdpo_on.py": "algos/test_mdpo_on.py",
    "algos/mdpo_off.py": "algos/test_mdpo_off.py",
    "algos/pmoe_sac.py": "algos/test_pmoe_sac.py",
    "algos/pmoe_ppo.py": "algos/test_pmoe_ppo.py",
}

MUTANTS = {  # file -> pairs of a text and what stands in its place
    "nn/mlp.py": [
        ("* fan_in**-0.5", "* fan_out**-0.5"),
        ("* fan_in**-0.5", "* (3 / fan_in) ** 0.5"),
        ("(2.0 * u - 1.0)", "u"),
        ("for generator in generators:", "for generator in [generators[0]] * len(generators):"),
        ("p.view(-1, members, *p.shape[1:])[:, index]", "p.view(members, -1, *p.shape[1:])[index]"),
        ("[:, index] for p", "[:, 0] for p"),
        ("x[:, None].expand(-1, copies, -1, -1)", "x[None].expand(copies, -1, -1, -1)"),
        ("(weight if last else weight.T)", "(weight.T if last else weight.T)"),
        ("(weight if last else weight.T).clone().contiguous()", "(weight if last else weight.T)"),
        ("return [p.detach() for p in params]", "return [p.detach().clone() for p in params]"),
        ("return [p.detach() for p in params]", "return list(params)"),
        ("values.append(x.mul_(masks[i // 2]) if masks else x)", "values.append(x)"),
        ("x.mul_(masks[i // 2])", "x.mul_(masks[0][..., : x.shape[2]])"),
        ("x.mul_(masks[i // 2])", "x * masks[i // 2]"),
        ("x, params[i]).relu_()", "x, params[i]).tanh_()"),
        ("flow.mul_(masks[layer])", "pass"),
        ("flow.mul_(masks[layer])", "flow.div_(masks[layer].clamp(min=1e-9))"),
        ("activations[layer + 1], 0, grad_input", "activations[layer + 1], -1, grad_input"),
        ("grads.append(grad_out.sum(2, keepdim=True))", "grads.append(grad_out.mean(2, keepdim=True))"),
        ("grads.append(flow.sum(1, keepdim=True))", "grads.append(flow.mean(1, keepdim=True))"),
        ("if want[1 + 2 * last]:", "if True:"),
        ("if want[1 + 2 * layer]:", "if True:"),
        ("if want[1 + 2 * layer]:", "if want[1 + 2 * last]:"),
        ("if layer or want[0]:", "if True:"),
        ("    @torch.autograd.function.once_differentiable\n", ""),
        ("bias.fill_(0.1)", "pass"),
        ("params[-2].shape[2] ** 0.5", "params[-2].shape[2] ** -0.5"),
        ("if len(sizes) < 3:", "if len(sizes) < 2:"),
    ],
    "nn/trainable.py": [
        ("[g.contiguous() for g in grads]", "list(grads)"),
        ("if tensor.shape != saved.shape:", "if False:"),
        ("beta1=self.betas[0],", "beta1=0.99,"),
        ("beta2=self.betas[1],", "beta2=0.99,"),
        ("eps=1e-8,", "eps=1e-5,"),
        ("weight_decay=self.weight_decay,", "weight_decay=0.01,"),
        ("maximize=False,", "maximize=True,"),
        ("self.steps.add_(1.0)", "self.steps.fill_(1.0)"),
        (
            "_foreach_lerp_(self.target, self.constant, tau)",
            "_foreach_lerp_(self.target, self.constant, 1 - tau)",
        ),
        (
            "_foreach_lerp_(self.target, self.constant, tau)",
            "_foreach_lerp_(self.constant, self.target, tau)",
        ),
        ("[p.clone() for p in self.constant] if target", "list(self.constant) if target"),
        ("torch.autograd.grad(loss, self.params)", "[-g for g in torch.autograd.grad(loss, self.params)]"),
        ('pairs += [(self.second_moments, "second_moments")]', ""),
        ('self.steps.copy_(state["steps"])', ""),
        ('pairs += [] if self.target is None else [(self.target, "target")]', ""),
    ],
    "nn/precision.py": [
        ('torch.set_float32_matmul_precision("medium")\n        self', "pass\n        self"),
        ("            torch.set_float32_matmul_precision(self._outer)", "            pass"),
        ("        self.autocast.__exit__(kind, error, trace)", "        pass"),
        ('enabled=name == "bf16"', "enabled=True"),
        ('enabled=name == "bf16"', "enabled=False"),
        ('name == "bf16" and not _has_bf16(self.kind)', "False"),
        ("        torch.set_float32_matmul_precision(outer)", "        pass"),
    ],
    "fitted_q.py": [
        ("td_target(batch.rewards, batch.terminated", "td_target(batch.rewards, 0 * batch.terminated"),
        ("td_target(batch.rewards, batch.terminated", "td_target(batch.rewards, batch.terminated + 1"),
        ("next_actions = _act(policy, rows.next_observations)", "next_actions = rows.actions"),
        (
            "next_actions = _act(policy, rows.next_observations)",
            "next_actions = _act(policy, rows.observations) * 0",
        ),
        ("        self.critic.update_target(self.options.tau)\n", ""),
        (
            "_values(learner, policy, rows.observations[_first(rows)]",
            "_values(learner, policy, rows.observations",
        ),
        (
            "torch.from_numpy(_act(policy, observations))\n",
            "0 * torch.from_numpy(_act(policy, observations))\n",
        ),
        ("rows.actions) / half", "rows.actions)"),
        ("normalizer, ~fitted)", "normalizer, fitted)"),
        ("normalizer, fitted),\n", "normalizer, ~fitted),\n"),
        ("rewards * discount**steps", "rewards * discount ** np.arange(len(rewards))"),
        ("np.sqrt(total / keep.sum())", "np.sqrt(total / len(keep))"),
        ("normalizer, fitted, options.batch_size", "normalizer, fitted | True, options.batch_size"),
        ("every=[max(options.steps // 100, 1)]", "every=[max(options.steps // 10, 1)]"),
    ],
    "nn/gradients.py": [
        ("{name: x.detach() for name, x in aux.items()}", "aux"),
    ],
    "nn/actor_critic.py": [
        ("not math.isfinite(value)", "False"),
        (" if 0.5 < config.tau < 1.0 else", " if True else"),
        ("generator.set_state(saved.cpu())", "generator.set_state(saved)"),
        (
            "self.center, self.half = (high + low) / 2, (high - low) / 2",
            "self.center, self.half = (high - low) / 2, (high - low) / 2",
        ),
        ("self.is_unit else self.center + self.half * unit", "self.is_unit else self.half * unit"),
        ("(low == -1).all() and (high == 1).all()", "(low == -1).any() and (high == 1).any()"),
        ("actions.clamp(-1.0, 1.0) if", "actions if"),
        ("torch.clamp(actions, self.low, self.high)", "torch.clamp(actions, -self.high, self.high)"),
        ("torch.cat((observations, actions), dim=2)", "torch.cat((actions, observations), dim=2)"),
        (
            "q.view(len(observations), -1, observations.shape[1])",
            "q.view(-1, len(observations), observations.shape[1]).transpose(0, 1)",
        ),
        (
            "if self.updates % self.settings.policy_delay:",
            "if (self.updates - 1) % self.settings.policy_delay:",
        ),
        (
            "if self.updates % self.settings.policy_delay:",
            "if self.updates % (self.settings.policy_delay + 1):",
        ),
        ("        self.critic.update_target(self.settings.tau)\n", ""),
        ("        self.actor.update_target(self.settings.tau)\n", ""),
        (
            "        self.updates += 1\n        if",
            "        self.updates += 1\n        self.critic.update_target(self.settings.tau)\n        if",
        ),
        (
            "        self.actor.apply(grads)\n        self.actor.update_target(self.settings.tau)\n",
            "        self.actor.update_target(self.settings.tau)\n        self.actor.apply(grads)\n",
        ),
        ("self.actor.update_target(self.settings.tau)", "self.actor.update_target(1 - self.settings.tau)"),
        (".clamp(-limit, limit)", ""),
        ("(noise * std).clamp(-limit, limit)", "noise.clamp(-limit, limit) * std"),
        ("(noise if self.is_unit else noise * self.half)", "noise"),
        ("self.clip(actions + (", "(actions + ("),
        ("self.act(self.actor.target or [], batch.next", "self.act(self.actor.constant, batch.next"),
        ("bootstrap(self.critic.target or [], batch", "bootstrap(self.critic.constant, batch"),
        ("*width * actor_layers", "*width * critic_layers"),
        ("*width * critic_layers", "*width * 2"),
        ('field.name.endswith("lr") and', 'field.name == "_" and'),
        ("next_actions).amin(dim=1)", "next_actions).amax(dim=1)"),
        ("next_actions).amin(dim=1)", "next_actions)[:, 0]"),
        ("next_actions).amin(dim=1)", "next_actions).mean(dim=1)"),
        ("self.actor.target or [], batch.next_observations)", "self.actor.target or [], batch.observations)"),
        ("self.values(critic, batch.next_observations, next", "self.values(critic, batch.observations, next"),
        ("batch.terminated, next_values, self", "1 - batch.terminated, next_values, self"),
        ("member(self.critic.constant, 0, 2)", "member(self.critic.constant, 1, 2)"),
        (
            "q = self.values(first_critic, observations, pi)[:, 0]",
            "q = self.values(self.critic.constant, observations, pi).amin(dim=1)",
        ),
        ("anchor(pi.detach()) if callable(anchor)", "anchor(pi) if callable(anchor)"),
        ('return per_seed.sum(), {"critic_loss"', 'return per_seed.mean(), {"critic_loss"'),
        ('return per_seed.sum(), {"actor_loss"', 'return per_seed.mean(), {"actor_loss"'),
        (
            '            "updates": self.updates,\n            "noise"',
            '            "updates": 0,\n            "noise"',
        ),
        (
            "        for generator, saved in zip(self.noise",
            "        for generator, saved in zip([] and self.noise",
        ),
        ("if not 0.0 < config.tau <= 0.5:", "if not 0.0 < config.tau <= 1.0:"),
    ],
    "nn/normed.py": [
        ("linear[1:-2:2]", "linear[1::2]"),
        ("torch.ones_like(bias, requires_grad=True)", "torch.zeros_like(bias, requires_grad=True)"),
        ("F.layer_norm(h, h.shape[-1:])", "F.layer_norm(h, h.shape[-2:])"),
        ("F.layer_norm(h, h.shape[-1:])", "h"),
        ('h.relu() if order == "after_relu"', 'h.relu() if order == "before_relu"'),
        ('h.relu() if order == "before_relu"', 'h.relu() if order != ""'),
        ("torch.addcmul(norms[i + 1], norms[i],", "torch.addcmul(norms[i], norms[i + 1],"),
        ("len(params) // 2 + 1", "len(params) // 2 - 1"),
        ("h.transpose(1, 2)).to(x.dtype)", "h.transpose(1, 2))"),
        ("x[:, None].expand(-1, copies, -1, -1)", "x[None].expand(copies, -1, -1, -1)"),
    ],
    "nn/vae.py": [
        ("LOG_STD_RANGE = (-4.0, 15.0)", "LOG_STD_RANGE = (-4.0, 2.0)"),
        ("log_std.clamp(*LOG_STD_RANGE)", "log_std"),
        ("latent = 2 * act_dim", "latent = act_dim"),
        ("box.squash(mlp(", "torch.tanh(mlp("),
        ("params[: len(params) // 2]", "params[len(params) // 2 :]"),
        ("torch.cat((observations, latents), dim=2)", "torch.cat((latents, observations), dim=2)"),
        (".chunk(2, dim=2)", ".chunk(2, dim=2)[::-1]"),
    ],
    "estimators/bellman.py": [
        ("rewards + discount * (1.0 - terminated)", "rewards + discount * terminated"),
        ("rewards + discount * (1.0 - terminated)", "rewards + discount"),
        ("rewards + discount * (1.0 - terminated)", "rewards + (1.0 - terminated)"),
        ("target.detach()[:, None]", "target[:, None]"),
        (".mean(dim=2).sum(dim=1)", ".mean(dim=2).mean(dim=1)"),
        (".mean(dim=2).sum(dim=1)", ".sum(dim=2).sum(dim=1)"),
        ("(difference < 0)", "(difference > 0)"),
        ("(weight * difference.square()).mean(dim=-1)", "(weight * difference.abs()).mean(dim=-1)"),
        (
            "(weight * difference.square()).mean(dim=-1)",
            "(weight * difference.square()).sum(-1) / weight.sum(-1)",
        ),
    ],
    "estimators/likelihood.py": [
        ("(-log_std).exp()", "log_std.exp()"),
        ("log_std + 0.5 * math.log(2 * math.pi)).sum", "-log_std + 0.5 * math.log(2 * math.pi)).sum"),
        ("0.5 * math.log(2 * math.pi)).sum", "math.log(2 * math.pi)).sum"),
        ("math.pi)).sum(dim=-1)", "math.pi)).mean(dim=-1)"),
        ("(advantages.detach() * temperature)", "(advantages * temperature)"),
        ("(advantages.detach() * temperature)", "(advantages.detach() / max(temperature, 1e-9))"),
        (".clamp(max=limit)", ""),
        ("-(weights.detach() * log_probs)", "(weights.detach() * log_probs)"),
        ("weights.detach() * log_probs", "weights * log_probs"),
        ("- 1.0) - log_std", "- 1.0) + log_std"),
        ("(2.0 * log_std).exp()", "log_std.exp()"),
    ],
    "estimators/pathwise.py": [
        ("alpha / q.detach().abs()", "alpha / q.abs()"),
        ("q.detach().abs().mean(dim=-1)", "q.detach().mean(dim=-1).abs()"),
        ("q.detach().abs().mean(dim=-1)", "q.detach().abs().mean()"),
        ("return -scale * q", "return scale * q"),
        ("policy_actions - actions.detach()", "policy_actions - actions"),
        (".mean(dim=(-2, -1))", ".sum(dim=-1).mean(dim=-1)"),
    ],
    "algos/bc.py": [
        ("max(1, int(", "max(0, int("),
        (
            "int(config.top_fraction * dataset.num_episodes + 1e-9)",
            "round(config.top_fraction * dataset.num_episodes)",
        ),
        ("dataset.num_episodes + 1e-9)", "dataset.num_episodes)"),
        ("np.argsort(-dataset.episode_returns", "np.argsort(dataset.episode_returns"),
        (
            "np.argsort(-dataset.episode_returns",
            "np.argsort(-dataset.episode_returns / dataset.episode_lengths",
        ),
        ("dataset.select(np.sort(best))", "dataset.select(best)"),
        ("if not 0.0 < self.top_fraction <= 1.0:", "if not 0.0 <= self.top_fraction <= 1.0:"),
        ("squared_distance(pi, batch.actions)", "squared_distance(pi, batch.actions) * 2"),
        ("BCConfig, BC, prepare=best_episodes", "BCConfig, BC"),
    ],
    "algos/td3_bc.py": [
        ("return q_loss + pull", "return q_loss - pull"),
        ("anchor=batch.actions", "anchor=batch.actions.flip(1)"),
        ("if self.alpha < 0:", "if self.alpha < -9:"),
    ],
    "algos/prdc.py": [
        ("batch.rows.flatten(), asked.flatten(0, 1)", "batch.rows.flatten(), batch.actions.flatten(0, 1)"),
        ("found[..., obs_dim:]", "batch.actions"),
        ("problem.actions, config.beta, threads", "problem.actions, 2 * config.beta, threads"),
        ("problem.actions, config.beta, threads", "problem.actions, config.beta**0.5, threads"),
        ("(rows == batch.rows).float()", "(rows != batch.rows).float()"),
        ("self.beta * batch.observations", "batch.observations"),
        ("q_loss + dc_loss, {", "q_loss + 0.5 * dc_loss, {"),
        ("normalized_q_loss(q, alpha)", "normalized_q_loss(-q, alpha)"),
        ("pi, found)", "batch.actions, found)"),
    ],
    "algos/a2pr.py": [
        ("(q_candidate >= values) | (q_data", "(q_candidate >= values).float() + (q_data"),
        ("(q_candidate >= values) | (q_data", "(q_candidate >= values) & (q_data"),
        ("(q_candidate >= values)", "(q_candidate > values)"),
        ("(q_data > values)\n    return", "(q_data >= values)\n    return"),
        ("q_candidate >= q_data", "q_candidate > q_data"),
        ("q_candidate >= q_data", "q_candidate <= q_data"),
        ("candidate, actions), is_candidate", "candidate.detach(), actions), is_candidate"),
        ("pi.detach() if self.config.detach_target else pi", "pi"),
        ("pi.detach() if self.config.detach_target else pi", "pi.detach()"),
        ("good[..., None] * (reconstruction", "(reconstruction"),
        ("+ 0.5 * parts", "+ parts"),
        (
            "standard_normal_kl(mean, log_std).mean",
            "good[..., None].mul(standard_normal_kl(mean, log_std)).mean",
        ),
        ("errors.mean(dim=(1, 2))", "errors.sum(dim=(1, 2)) / (good.sum(dim=1) + 1e-9)"),
        ("weight * errors", "errors"),
        ("q_loss + bc_loss, {", "q_loss - bc_loss, {"),
        ("(pi - target).square()).mean(dim=(1, 2))", "(pi - target).square()).sum(dim=2).mean(dim=1)"),
        ("(q_data > values).float(), latents[0]", "(q_data < values).float(), latents[0]"),
        ("(q_data > values).float(), latents[0]", "(q_data > values).float(), latents[1]"),
        ("torch.minimum(self.td3.bootstrap(critic, batch, next_actions), target)", "target"),
        ("torch.minimum(self.td3", "torch.maximum(self.td3"),
        ("critic = self.td3.critic.constant\n", "critic = self.td3.critic.target\n"),
        ("member(critic, 0, 2)", "member(critic, 1, 2)"),
        ("member(self.td3.critic.constant, 0, 2)", "member(self.td3.critic.constant, 1, 2)"),
        (
            "encode(vae, batch.observations, batch.actions)",
            "encode(vae, batch.observations, batch.actions * good[..., None])",
        ),
        (
            "mean + log_std.exp() * noise, self.td3.box)\n            per_seed",
            "mean, self.td3.box)\n            per_seed",
        ),
        ("noise.clamp(-PRIOR_LIMIT, PRIOR_LIMIT)", "noise"),
        ("self.config.mask * is_open", "1.0 * is_open"),
        (
            "init_vae(problem.obs_dim, problem.act_dim, config.vae_hidden",
            "init_vae(problem.obs_dim, problem.act_dim, config.hidden",
        ),
        ("Trainable(vae, config.vae_lr)", "Trainable(vae, config.lr)"),
        ('"latent": [g.get_state() for g in self.latent]', '"latent": []'),
        ("generator.set_state(saved.cpu())", "pass"),
        ("actor_layers=config.actor_layers", "actor_layers=config.critic_layers"),
        ("(config.hidden,) * config.critic_layers", "(config.hidden,) * config.actor_layers"),
        ('name in ("td3", "value", "vae")', 'name in ("td3", "value")'),
    ],
    "algos/rebrac.py": [
        (".square().sum(dim=2)", ".square().mean(dim=2)"),
        (" / half_range", ""),
        ("normalized_q_loss(q, 1.0)", "normalized_q_loss(q, 2.0)"),
        ("q_loss + actor_bc_coef * bc_loss", "q_loss + bc_loss"),
        ("- config.critic_bc_coef * distance", "+ config.critic_bc_coef * distance"),
        ("- config.critic_bc_coef * distance", "- self.config.actor_bc_coef * distance"),
        ("penalty(actions, batch.next_actions", "penalty(actions, batch.actions"),
        ("batch.next_observations, actions).amin(dim=1)", "batch.next_observations, actions)[:, 0]"),
        ("batch.observations, pi).amin(dim=1)", "batch.observations, pi)[:, 0]"),
        ("batch.observations, pi).amin(dim=1)", "batch.observations, pi).mean(dim=1)"),
        ("self.critic.constant, batch.observations, pi", "self.critic.target, batch.observations, pi"),
        ("self.act(self.actor.target or []", "self.act(self.actor.constant or []"),
        ("self.critic.target or []", "self.critic.constant"),
        ('dim=2), "after_relu")', 'dim=2), "before_relu")'),
        ("ACTOR_BOUND, CRITIC_BOUND = 1e-3", "CRITIC_BOUND, ACTOR_BOUND = 1e-3"),
        (
            "if self.updates % self.config.policy_delay == 0:",
            "if (self.updates + 1) % self.config.policy_delay == 0:",
        ),
        ("            self.critic.update_target(self.config.tau)\n", ""),
        (
            "            self.actor.update_target(self.config.tau)  # towards the actor before its step\n"
            "            self.actor.apply(grads)\n",
            "            self.actor.apply(grads)\n            self.actor.update_target(self.config.tau)\n",
        ),
        ("Trainable(critic, config.critic_lr, target", "Trainable(critic, config.lr, target"),
        ("unstack(self.actor.params, seed)", "unstack(self.actor.target, seed)"),
        ("    next_actions=True,\n", ""),
    ],
    "estimators/grad_surgery.py": [
        ("vector - coefficient[:, None] * direction", "vector + coefficient[:, None] * direction"),
        ("direction.square().sum(dim=1).clamp", "direction.norm(dim=1).clamp"),
        ("(vector * direction).sum(dim=1) / square", "(vector * direction).sum() / square"),
        ("g.reshape(seeds, -1) for g", "g.transpose(0, 1).reshape(seeds, -1) for g"),
        ("SMALLEST_SQUARE = 1e-10", "SMALLEST_SQUARE = 1e-3"),
        ("part.reshape(p.shape)", "part.flip(1).reshape(p.shape)"),
    ],
    "estimators/dice.py": [
        ("(0.5 * residual + 1.0).clamp(min=0.0)", "(0.5 * residual + 1.0)"),
        ("(0.5 * residual + 1.0)", "(residual + 1.0)"),
        (".square() - 1.0", ".square()"),
        ("discount * (1.0 - terminated)[:, None] * next_values", "discount * next_values"),
        ("next_values - values", "next_values + values"),
        ("F.softplus(-above)", "F.softplus(above)"),
        ("F.softplus(below).mean(dim=1)", "F.softplus(-below).mean(dim=1)"),
    ],
    "nn/gaussian.py": [
        ("self.box.center + self.box.half * raw", "self.box.half * raw"),
        ("log_std if self.box.is_unit else log_std + self.box.half.log()", "log_std"),
        ("log_std = params[-1].clamp(self.low, self.high)", "log_std = params[-1]"),
        ("self.box.clip(mean + log_std.exp() * noise)", "mean + log_std.exp() * noise"),
        ("mean + log_std.exp() * noise", "mean + log_std * noise"),
        ("if self.bounded:\n            mean", "if True:\n            mean"),
        ("box.half[:, None] * weight", "box.half.flip(0)[:, None] * weight"),
        ("log_std = log_std + box.half.log()", "pass"),
        ("params[-1][seed, 0]", "params[-1][0, 0]"),
    ],
    "data/join.py": [
        ('if k != "timeouts_recorded"', "if k"),
        ("len({_width(part, name) for part in parts}) == 1", "all(name in part.fields for part in parts)"),
        ("[d.select(np.arange(d.num_episodes)) for d in datasets]", "list(datasets)"),
        ("for d in datasets]\n    names", "for d in datasets[::-1]]\n    names"),
    ],
    "algos/odice.py": [
        ("1 + config.twin", "2"),
        ("v.sum(), {", "-v.sum(), {"),
        ("(1.0 - lam) * v.sum()", "lam * v.sum()"),
        (
            'return per_seed.sum(), {"residual": e, "dual"',
            'return 2 * per_seed.sum(), {"residual": e, "dual"',
        ),
        (
            "(c.eta * dual(target, self.values(v, next_s))[0], {})",
            "(dual(target, self.values(v, next_s))[0], {})",
        ),
        ("dual(target, self.values(v, next_s))[0]", "dual(self.target(next_s), self.values(v, next_s))[0]"),
        (".amin(dim=1, keepdim=True)", ".amax(dim=1, keepdim=True)"),
        (
            "dual(self.values(v, s), self.values(v, next_s))",
            "dual(self.values(v, s).detach(), self.values(v, next_s))",
        ),
        ("next_target = self.target(next_s)", "next_target = self.target(s)"),
        ("project_out(g_b, g_f)", "project_out(g_f, g_b)"),
        ("unflatten(g_f + rest, forward)", "unflatten(rest, forward)"),
        ("orthogonal(forward, backward, len(rewards))", "orthogonal(forward, backward, 1)"),
        ("weights.mean(dim=1)", "weights.amin(dim=1)"),
        ("weights = residuals.clamp(min=0.0) if", "weights = residuals.abs() if"),
        ("return weights.clamp(max=WEIGHT_LIMIT)", "return weights"),
        ("            self.value.update_target(self.config.tau)\n", "            pass\n"),
        (", weight_decay=config.weight_decay)", ")"),
        ('"before_relu"', '"after_relu"'),
        ("LOG_STD_RANGE, bounded=config.tanh_mean", "LOG_STD_RANGE, bounded=False"),
        ("problem.rewards > 0.5", "problem.rewards < 0.5"),
        ("density_ratio_loss(above, below)", "density_ratio_loss(below, above)"),
        (".clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)", ""),
        ("rewards, starts, metrics = self.log", "_, starts, metrics = self.log"),
        ("rewards, starts, metrics = self.log", "rewards, _, metrics = self.log"),
        ('if state["digest"] != self.digest:', "if False:"),
        ("torch.cat((self.observations, self.actions), dim=1)", "self.actions"),
        ("generator.set_state(saved.cpu())", "pass"),
        ("_rewarded(expert, 0.0)", "expert"),
        ("_rewarded(expert, 1.0)", "_rewarded(expert, 0.0)"),
        ("np.arange(config.expert_first, config.expert_first + count)", "np.arange(count)"),
        ('_MAZE | {"twin": False},\n    "antmaze-large', '_MAZE,\n    "antmaze-large'),
        ('"reward_shift": -3.0', '"reward_shift": 3.0'),
        ("config.lr, target=config", "config.lr, weight_decay=config.weight_decay, target=config"),
        ("    prepare=demonstrations,\n", ""),
    ],
    "algos/awac.py": [
        ("(config.hidden,) * 3", "(config.hidden,) * 2"),
        ("self.critic.constant, batch.observations", "self.critic.target or [], batch.observations"),
        ("advantage_weights(q - v,", "advantage_weights(v - q,"),
        ("advantage_weights(q - v,", "advantage_weights(q,"),
        ("1.0 / self.config.lam, WEIGHT_LIMIT", "self.config.lam, WEIGHT_LIMIT"),
        ("1.0 / self.config.lam, WEIGHT_LIMIT", "1.0 / self.config.lam, 1e9"),
        ("a).amin(dim=1) for a in", "a).amax(dim=1) for a in"),
        ("next_actions).amin(dim=1)", "next_actions)[:, 0]"),
        (
            "(self.critic.target or [], batch.next_observations",
            "(self.critic.constant, batch.next_observations",
        ),
        ("td_target(batch.rewards, batch.terminated,", "td_target(batch.rewards, 0 * batch.terminated,"),
        ("        self.critic.update_target(self.config.tau)\n", ""),
        ("self._actor_gradients(batch, noise)", "self._actor_gradients(batch, next_noise)"),
        ("(-20.0, 2.0)", "(-5.0, 2.0)"),
        (
            "self._actor_gradients(batch, noise)\n        self.actor.apply(grads)",
            "self._actor_gradients(batch, noise)",
        ),
    ],
    "algos/iql.py": [
        ("generator.set_state(saved.cpu())", "generator.set_state(saved)"),
        ("_q(self.critic.target or [], batch).amin(dim=1)", "_q(self.critic.constant, batch).amin(dim=1)"),
        (
            "_q(self.critic.target or [], batch).amin(dim=1)",
            "_q(self.critic.target or [], batch).amax(dim=1)",
        ),
        ("_q(self.critic.target or [], batch).amin(dim=1)", "_q(self.critic.target or [], batch)[:, 0]"),
        ("expectile_loss(target_q - v,", "expectile_loss(v - target_q,"),
        ("advantages = target_q - mlp", "advantages = mlp"),
        ("self.config.temperature, WEIGHT_LIMIT", "self.config.temperature, 1e9"),
        ("actor[-1].clamp(*LOG_STD_RANGE) + self.box.half.log()", "actor[-1].clamp(*LOG_STD_RANGE)"),
        ("actor[-1].clamp(*LOG_STD_RANGE) + self.box.half.log()", "actor[-1] + self.box.half.log()"),
        ("batch.next_observations)[:, 0]", "batch.observations)[:, 0]"),
        ("td_target(batch.rewards, batch.terminated,", "td_target(batch.rewards, 0 * batch.terminated,"),
        ("        self.critic.update_target(self.config.tau)\n", ""),
        ("math.cos(math.pi * progress)", "math.cos(0.5 * math.pi * progress)"),
        ("min(self.updates / self.steps, 1.0)", "self.updates / self.steps"),
        ("self.actor.lr = self.actor_lr()", "self.actor.lr = self.critic.lr = self.actor_lr()"),
        ("(u >= rate).float() / (1.0 - rate)", "(u >= rate).float()"),
        ("(u >= rate).float() / (1.0 - rate)", "(u < rate).float() / rate"),
        ("mlp(actor[:-1], batch.observations, masks)", "mlp(actor[:-1], batch.observations)"),
        ("self.actor.constant[-1][seed, 0]", "self.actor.constant[-1][0, 0]"),
        ('return per_seed.sum(), {"value_loss"', 'return per_seed.mean(), {"value_loss"'),
        ("LOG_STD_RANGE = (-5.0, 2.0)", "LOG_STD_RANGE = (-20.0, 2.0)"),
        (
            "grads, target_q, value_metrics = self._value_gradients(batch)\n        self.value.apply(grads)",
            "_, target_q, value_metrics = self._value_gradients(batch)",
        ),
    ],
    "algos/__init__.py": [
        ("max(fitting, key=len)", "min(fitting, key=len)"),
        ("if bare.startswith(key)]", "if key in bare]"),
        ("in fitting if not any(known.startswith(key) for known in D4RL)]", "in fitting]"),
        (
            "return dict(algorithm.presets[max(fitting, key=len)])",
            "return algorithm.presets[max(fitting, key=len)]",
        ),
    ],
    "data/normalize.py": [
        ("+ eps", ""),
        ("observations.std(axis=0, dtype=np.float64)", "observations.std(axis=0, ddof=1, dtype=np.float64)"),
        (
            "observations.std(axis=0, dtype=np.float64) + eps",
            "np.sqrt(observations.var(axis=0, dtype=np.float64) + eps**2)",
        ),
        ("observations.mean(axis=0, dtype=np.float64)", "observations.mean(axis=1, dtype=np.float64)"),
        ("(observations - self.mean", "(observations + self.mean"),
    ],
    "data/source.py": [
        ("o, a, r, n, d, *rest = picked", "n, a, r, o, d, *rest = picked"),
        ("(1, self.batch_size), self.table", "(1, self.batch_size + 1), self.table"),
        ("torch.randint(len(self.table), shape", "torch.randint(len(self.table) - 1, shape"),
        ("(len(self.table), shape, generator=g", "(len(self.table), shape, generator=generators[0]"),
    ],
    "training/seeding.py": [
        ("[seed, zlib", "[0, zlib"),
        ("zlib.crc32(name.encode())", "0"),
        ("torch.randn((1, *shape)", "torch.rand((1, *shape)"),
    ],
    "training/check.py": [
        ("    seed_globally(0)\n    learner", "    torch.manual_seed(0)\n    learner"),
        ("if value.requires_grad:", "if False:"),
        ("if seen != set(learner.metrics):", "if not seen:"),
        ("for batch in series[UPDATES:]:", "for batch in series[:0]:"),
        ("if apart > 1e-5:", "if apart > 1e5:"),
        ("(actions.abs() > 1 + 1e-6).any()", "(actions.abs() > 9).any()"),
        ("return None if torch.equal(a, b) else path", "return None"),
    ],
    "estimators/hvp.py": [
        ("(scores[episode] * values + slopes)", "(slopes)"),
        ("(scores[episode] * values + slopes)", "(slopes - scores[episode] * values)"),
        (
            "scores = per_trajectory(slopes.detach(), episode)",
            "scores = per_trajectory(slopes.detach(), episode).mean() + 0 * per_trajectory(slopes.detach(), episode)",
        ),
        ("slopes.detach()", "slopes"),
        ("rewards * discount ** time.to(rewards.dtype)", "rewards"),
        ("(sums[time] - psi) / (count - 1)", "sums[time] / count"),
    ],
    "estimators/transforms.py": [
        ("((1 - eta) / eta)", "(1 - eta)"),
        ("(1 - eta) * (d + v) + eta * g", "(1 - eta) * d + v + eta * g"),
        ("g + (1 - eta) * (d - b)", "g + (1 - eta) * d - b"),
        ("share * x + (1 - share) * before", "share * before + (1 - share) * x"),
    ],
    "algos/n_pg_igt.py": [
        (
            "transported(theta, self.previous, self.eta())",
            "transported(theta, self.previous, (2 / (self._n_updates + 1)) ** 0.8)",
        ),
        ("self.gradient(points[0]", "self.gradient(self.theta()"),
        ("self.decay**0.8", "self.decay**0.5"),
    ],
    "algos/harpg.py": [
        ("correction = self.hessian_vector(points[1]", "correction = self.hessian_vector(points[0]"),
        (
            "transforms.difference(points[0], self.previous)",
            "transforms.difference(self.previous, points[0])",
        ),
        ("batches[1])", "batches[0])"),
        ("else self.decay**0.5)", "else self.decay)"),
    ],
    "algos/policy_gradient.py": [
        (
            "self.log_likelihood(self.previous, batch) - self.log_likelihood(theta, batch)",
            "self.log_likelihood(theta, batch) - self.log_likelihood(self.previous, batch)",
        ),
        ('"storm": 1 / 3', '"storm": 2 / 3'),
        ("log_weights.clamp(max=LARGEST_LOG_WEIGHT).exp()", "log_weights.exp()"),
    ],
    "online/policy_gradient.py": [
        (
            "left = np.array([total // n + (k < total % n) for k in range(n)])",
            "left = np.array([-(-total // n) for k in range(n)])",
        ),
        ("return features, actions, rewards", "return features, torch.as_tensor(given), rewards"),
        ('f"{name} {self._n_updates}"', 'f"{name}"'),
    ],
    "online/policies.py": [
        ('"log_std_min", "fixed_std"]', '"log_std_min"]'),
        ("max(log_std, log_std_min), fixed_std", "log_std, fixed_std"),
    ],
    "online/acting.py": [
        ("normalizer.epsilon)", "normalizer.epsilon) * 1.01"),
        ("float(normalizer.clip_obs) if normalizer else None", "None"),
    ],
    "online/run_callback.py": [
        ("table.truncate(size)", "pass"),
        (
            'self.sums, self.logged, self.saved = state["sums"], state["logged"], state["step"]',
            'self.logged, self.saved = state["logged"], state["step"]',
        ),
        ("self._evaluate(step - step % every", "self._evaluate(step"),
    ],
    "online/checkpoint.py": [
        (
            "rms.mean, rms.var, rms.count = mean.cpu().numpy(), var.cpu().numpy(), count",
            "rms.mean, rms.var = mean.cpu().numpy(), var.cpu().numpy()",
        ),
        ('normalizer.returns = state["discounted"].cpu().numpy()', "pass"),
        ("setattr(model, name, None if value is None else value.cpu().numpy())", "pass"),
        ("steps.go_on(last_observations(environments))", "pass"),
        ('json.loads(state["random_actions"])', "model.action_space.np_random.bit_generator.state"),
        ("if strict and not same:", "if False:"),
        ("environments._reset_seeds()", "pass"),
        ("    if same:\n        for name", "    if True:\n        for name"),
    ],
    "online/vector.py": [
        ("np.zeros_like(arr[0]), 1)", "np.ones_like(arr[0]), 1)"),
        ("return seen.copy(),", "return seen,"),
        ("truncated and not terminated", "truncated"),
        ("self.buf_rews.copy()", "self.buf_rews"),
        ("self.buf_dones.copy()", "self.buf_dones"),
        (", list(self.buf_infos)", ", self.buf_infos"),
        ('info["terminal_observation"] = np.array(observation)', "pass"),
        ("np.array(observation)  #", "observation  #"),
        ('info.pop("episode", None)', "pass"),
        ("if not self.norm_obs:", "if False:"),
        (".astype(np.float32)", ""),
    ],
    "online/replayable.py": [
        ("self.actions, self.rewards = [], 0.0", "self.rewards = 0.0"),
        ("self.actions, self.rewards = [], 0.0", "self.actions = []"),
        ('if repr(self.rewards) == repr(episode["rewards"]) else None', ""),
        ("        one.go_on_after(episode)", "        pass"),
        ("self.first, self.number = seed, 0", "self.first = seed"),
        ("self.number += 1", "pass"),
        ("[ENV_STREAM, self.first, self.number]", "[ENV_STREAM, self.number]"),
        ("if self.number else self.first", ""),
        ("self.actions.append(np.array(action))", "pass"),
        ('self.first, self.number = episode["first"], episode["number"]', 'self.first = episode["first"]'),
        ("last_observations(env)[k].tobytes() !=", "last_observations(env)[k].tobytes() is"),
    ],
    "estimators/advantages.py": [
        ("going[:, -1] = 0.0", "pass"),
        ("groups.others(weights * rewards)", "groups.others(rewards)"),
        (".clamp(min=torch.finfo(baseline_weights.dtype).tiny ** 0.5)", ""),
        ("x.std() if x.numel() > 1 else x.new_zeros(())", "x.std()"),
    ],
    "estimators/ratios.py": [
        ("sign * log_ratio.clamp(-low, high)) * sign", "sign * log_ratio.clamp(-low, high))"),
    ],
    "estimators/compose.py": [
        ("steps = torch.sub(steps, ", "steps = torch.add(steps, "),
        ("for term in terms]).sum(dim=0)", "for term in terms]).mean(dim=0)"),
        (
            "log_probs.float() if log_probs.dtype in (torch.bfloat16, torch.float16) else log_probs",
            "log_probs",
        ),
    ],
    "estimators/regularizers.py": [
        ("(log_probs - ref_log_probs).clamp(min=-LIMIT)", "log_probs - ref_log_probs"),
    ],
    "estimators/low_memory.py": [
        (
            "logits.gather(1, place[:, None])[:, 0]",
            "(hidden * weight[place]).sum(dim=1, dtype=_float(hidden))",
        ),
    ],
    "estimators/mixture.py": [
        ("cost.mean(dim=(-2, -1)) if every", "cost.sum(dim=-1).mean(dim=-1) if every"),
        ("hard + (soft - soft.detach())", "soft"),
        (
            "others = (constant.sum(dim=-1, keepdim=True) - constant) / max(rows - 1, 1)",
            "others = constant.mean(dim=-1, keepdim=True)",
        ),
        ("fixed = Mixture(m.log_weights.detach(), m.mean, m.log_std)", "fixed = m"),
        ("(log_probs * won).sum(-1).detach()", "log_probs.mean(-1).detach()"),
    ],
    "online/actor_critic.py": [
        ("torch.addcmul(mean, self.log_std.exp(), ", "torch.addcmul(mean, self.log_std, "),
        ("(*self.critic_layers, self.value_net)", "(*self.actor_layers, self.value_net)"),
        ("return mean if deterministic else", "return mean if not deterministic else"),
        ("and len(self.observation_space.shape) == 1", "and True"),
        ("and self.activation_fn in ACTIVATIONS", "and True"),
        ("and isinstance(self.action_dist, DiagGaussianDistribution)", "and True"),
        ('{"eps": 1e-5, "fused": True}', '{"eps": 1e-8, "fused": True}'),
    ],
    "online/off_policy.py": [
        ("terminated=(done * (1.0 - cut))[..., 0]", "terminated=done[..., 0]"),
        ("ended = self.dones[at] * (1.0 - self.timeouts[at])", "ended = self.dones[at]"),
        ("self._summed += gradient_steps", "self._summed += 1"),
        ("(self.buffer_size if self.full else self.pos) * self.n_envs", "self.pos * self.n_envs"),
        ("log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)", "log_std"),
        ("self.num_timesteps < learning_starts", "self.num_timesteps <= learning_starts"),
    ],
    "online/on_policy.py": [
        ("torch.cat([starts[:, 1:], torch", "torch.cat([starts[:, :-1], torch"),
        ("least = min(size or total, total) if whole else 2", "least = 2"),
        ("policy.acting_only, buffer.judge = False, None", "buffer.judge = None"),
        ("(limit / (length + 1e-6)).clamp(max=1.0)", "(limit / (length + 1e-6))"),
    ],
    "online/mixture.py": [
        ("h.detach() if self.detach else h, gate", "h, gate"),
        (
            "return mx.draw_index(m, mx.gumbel_like(m.log_weights))\n",
            "return m.log_weights.argmax(dim=-1)\n",
        ),
        (
            "mx.pick(draws, mx.draw_index(m, mx.gumbel_like(m.log_weights)))",
            "mx.pick(draws, m.log_weights.argmax(-1))",
        ),
    ],
    "online/rate.py": [
        ("and step >= self.after", ""),
        ("elif not self.first and", "elif"),
    ],
    "online/options.py": [
        ("dataclasses.replace(options, **run), dataclasses", "options, dataclasses"),
    ],
    "training/cells.py": [
        ("        runner.resume(found[-1])\n        return\n", "        pass\n"),
        ('facts["options"] | facts["settings"]', 'facts["options"] | {}'),
    ],
    "training/sweep.py": [
        ("if training.algorithm in ONLINE:", "if False:"),
        ("if data.online != (algorithm in ONLINE):", "if data.online and algorithm not in ONLINE:"),
    ],
    "algos/mdpo_on.py": [
        ("share = self.settings.rollout * self.n_envs", "share = self.settings.rollout"),
        ("loss, self.critic_parameters(), None)", "loss, self.critic_parameters(), s.max_grad_norm)"),
    ],
    "algos/mdpo_off.py": [
        ("(u - old_mean) * (-old_log_std).exp(), u)", "noise, u)"),
        ("(self.num_timesteps - self.n_envs) // every", "(self.num_timesteps - 1) // every"),
    ],
    "algos/pmoe_sac.py": [
        ('"entropy": -found.log_probs.mean(dim=1)', '"entropy": -found.own.mean(dim=1)'),
    ],
    "algos/pmoe_ppo.py": [
        ("(q - samples.returns).square().mean(), mx", "(q - samples.advantages).square().mean(), mx"),
        (
            "log_probs = mx.log_prob(m, ",
            "log_probs = mx.log_prob(m._replace(log_weights=m.log_weights.detach()), ",
        ),
    ],
}


class FirstFailure:
    """A pytest plugin that keeps the name of the first test that failed."""

    name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for each phase of each test."""
        if report.failed and not self.name:
            self.name = report.nodeid.rpartition("/")[2]


def run_tests(folder: Path, tests: list[str]) -> tuple[int, str]:
    """Run pytest in a child process that imports the package from ``folder``: exit code, first failing test.

    A child that hangs or dies counts as failed (exit code 1).
    """
    result = folder / "result.txt"
    result.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.path.insert(0, str(folder))
        import offrl

        failure = FirstFailure()
        files = [str(ROOT / "tests" / name) for name in tests]
        where = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
        code = int(pytest.main(["-x", "-q", *where, *files], plugins=[failure]))
        if not Path(offrl.__file__).is_relative_to(folder):
            failure.name = f"the tests ran on {offrl.__file__}"
            code = int(pytest.ExitCode.INTERNAL_ERROR)
        result.write_text(f"{code}\n{failure.name}")
        os._exit(0)
    os.waitpid(child, 0)
    if not result.exists():
        return 1, "the process died or hung"
    code_text, _, name = result.read_text().partition("\n")
    return int(code_text), name


def copy_package(folder: Path) -> None:
    """A fresh copy of the package under ``folder``."""
    shutil.rmtree(folder / "offrl", ignore_errors=True)
    shutil.copytree(ROOT / "offrl", folder / "offrl", ignore=shutil.ignore_patterns("__pycache__"))


def try_mutant(folder: Path, file: str, text: str, replacement: str) -> tuple[str, str]:
    """The verdict on one mutant ('killed', 'survived', 'out of date', 'broken'), and why."""
    path = folder / "offrl" / file
    source = path.read_text()
    if source.count(text) != 1:
        return "out of date", f"the text occurs {source.count(text)} times"
    path.write_text(source.replace(text, replacement))
    try:
        code, test = run_tests(folder, [TESTS[file]])
    finally:
        path.write_text(source)
    if code == 0:
        return "survived", ""
    return ("killed", test) if code == 1 else ("broken", f"pytest ended with code {code}: {test}")


def main(words: list[str]) -> int:
    """Try the mutants whose file or texts hold one of ``words``, or all; 1 if not all were killed."""
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    every = [(file, *pair) for file, pairs in MUTANTS.items() for pair in pairs]
    chosen = [row for row in every if not words or any(word in "\n".join(row) for word in words)]
    verdicts: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_package(folder)
        code, test = run_tests(folder, sorted({TESTS[file] for file, _, _ in chosen}))
        if code != 0:
            print(f"the tests fail without any mutant ({test or f'code {code}'}); mend that first")
            return 1
        for file, text, replacement in chosen:
            began = time.monotonic()
            verdict, why = try_mutant(folder, file, text, replacement)
            verdicts.append(verdict)
            change = " ".join(f"{text} -> {replacement or '(nothing)'}".split())
            print(f"{verdict:12}{time.monotonic() - began:5.1f} s  {file}: {change}  [{why}]", flush=True)
    print(", ".join(f"{verdicts.count(v)} {v}" for v in ("killed", "survived", "broken", "out of date")))
    return 0 if verdicts.count("killed") == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
