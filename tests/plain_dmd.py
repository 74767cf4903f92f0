"""DMD2 written out once more, for the real thing to be held against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from w2svd_core.backbones import backbone
from w2svd_core.distillation import Distillation
from w2svd_core.rollout import Rollout


class Tape:
    """Everything random that a distillation draws, in order, for another program to use."""

    def __init__(self, program: Distillation) -> None:
        self.noises: list[Tensor] = []
        self.sigmas: list[Tensor] = []
        self.rollouts: list[Rollout] = []
        for name, into in (
            ("_noise", self.noises),
            ("_score_sigma", self.sigmas),
            ("_rollouts", self.rollouts),
        ):
            setattr(program, name, self._recording(getattr(program, name), into))

    @staticmethod
    def _recording(draw: Callable[..., Any], into: list[Any]) -> Callable[..., Any]:
        def recorded(*args: Any) -> Any:
            found = draw(*args)
            into.extend(found if isinstance(found, list) else [found])
            return found

        return recorded


class PlainDMD:
    """DMD2 written out with three models of their own: an untouched base, a critic, a student.

    It shares nothing with the house but the first adapters and the random draws.
    """

    def __init__(self, pristine: nn.Module, program: Distillation) -> None:
        self.recipe = program.recipe
        self.real = pristine
        self.student, self.student_adam = self._trained(pristine, program, "generator", self.recipe.student)
        self.critic, self.critic_adam = self._trained(pristine, program, "fake", self.recipe.critic)

    @staticmethod
    def _trained(pristine: nn.Module, program: Distillation, name: str, settings: Any) -> Any:
        from peft import LoraConfig, inject_adapter_in_model

        model = copy.deepcopy(pristine)
        betas = (settings.beta1, settings.beta2)
        if settings.kind == "full":
            model.requires_grad_(True)
            adam = torch.optim.AdamW(model.parameters(), settings.lr, betas, weight_decay=settings.weight_decay)
            return model, adam
        config = LoraConfig(
            r=settings.rank, lora_alpha=settings.rank, target_modules=list(backbone("wan").lora_targets)
        )
        inject_adapter_in_model(config, model, name)
        weights = {n: p.detach().clone() for n, p in program.model.parameters(name).items()}  # type: ignore[arg-type]
        model.load_state_dict(weights, strict=False)
        trained = [p for n, p in model.named_parameters() if ".lora_" in n]
        return model, torch.optim.AdamW(trained, settings.lr, betas, weight_decay=settings.weight_decay)

    @staticmethod
    def velocity(model: nn.Module, x_t: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        found: Tensor = model(x_t, timestep=1000 * sigma, encoder_hidden_states=text, return_dict=False)[0]
        return found

    def x0(self, model: nn.Module, x_t: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        return x_t - sigma.view(-1, 1, 1, 1, 1) * self.velocity(model, x_t, sigma, text)

    def step(self, adam: Any, loss: Tensor) -> None:
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], self.recipe.train.clip_norm)
        adam.step()

    def round(
        self,
        index: int,
        exit_step: int,
        text: Tensor,
        null: Tensor,
        noises: Iterator[Tensor],
        times: Iterator[Tensor],
    ) -> None:
        r = self.recipe
        levels = [torch.full((r.train.batch,), s) for s in r.student.sigmas]
        with torch.no_grad():
            x_t = next(noises)
            for step in range(exit_step):
                x0 = self.x0(self.student, x_t, levels[step], text)
                s = levels[step + 1].view(-1, 1, 1, 1, 1)
                x_t = (1 - s) * x0 + s * next(noises)
        x = self.x0(self.student, x_t, levels[exit_step], text)
        if index >= r.critic.warmup:
            self.update_student(x, text, null, noises, times)
        x = x.detach()
        for _ in range(r.critic.updates):
            sigma, eps = next(times), next(noises)
            s = sigma.view(-1, 1, 1, 1, 1)
            output = self.velocity(self.critic, (1 - s) * x + s * eps, sigma, text)
            self.step(self.critic_adam, (output - (eps - x)).square().mean())

    def update_student(
        self, x: Tensor, text: Tensor, null: Tensor, noises: Iterator[Tensor], times: Iterator[Tensor]
    ) -> None:
        with torch.no_grad():
            sigma = next(times)
            s = sigma.view(-1, 1, 1, 1, 1)
            noised = (1 - s) * x + s * next(noises)
            fake, real = self.x0(self.critic, noised, sigma, text), self.x0(self.real, noised, sigma, text)
            if self.recipe.matching.guidance_scale != 1:
                uncond = self.x0(self.real, noised, sigma, null)
                real = uncond + self.recipe.matching.guidance_scale * (real - uncond)
            size = (x - real).abs().flatten(1).mean(1).clamp(min=self.recipe.matching.normaliser_floor)
            gradient = (fake - real) / size.view(-1, 1, 1, 1, 1)
            wanted = x - gradient
        self.step(self.student_adam, 0.5 * (x - wanted).square().mean())

    def weights(self) -> dict[str, Tensor]:
        both = {"student": self.student, "critic": self.critic}
        return {
            f"{who}/{name}": p for who, model in both.items() for name, p in model.named_parameters() if p.requires_grad
        }
