"""`loss: NAME` for OpenRLHF's DPO trainer: from its batches to the host-neutral step and back."""

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from openrlhf.models.loss_registry import PreferenceLoss
from torch import Tensor

from ...causality import first_leak
from ...checkpoint import RunDescription, versions_of
from ...config import LossConfig
from ...decoder import load_decoder
from ...errors import SparsePOError, met_by_all, shown
from ...masks import build_masks
from ...policy import PolicyOutput
from ...record import Split
from ...reference import Runner
from ...registry import OBJECTIVES, import_plugins
from ...step import PreferenceStep
from ...texts import Joining, encode
from ..engine import EngineGuard, prepare_zero_3
from .checks import check_run, refuse_flags, shares_reference
from .flags import LEAST_COEF
from .keys import named, naming_flags
from .layout import layout
from .pairs import first_pair
from .policy import HostedPolicy
from .record import RunRecord
from .weighed import WeighedDataset, as_text, unpack

_CAUSALITY_TOKENS = 64  # of each response are enough to see what a mask looks at; each costs a forward
_OF_MASK_GROUP = ("mask_lr", "mask_weight_decay")
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def find_loss(name: str, plugins: list[str]) -> type[PreferenceLoss]:
    """What the entry point names: one class serves all of our objectives and everybody else's.

    Args:
        name: A registered objective, or `package.module:ClassName`.
        plugins: Modules to import first.

    Raises:
        LookupError: no objective has that name.
        SparsePOError: a module cannot be imported.
    """
    import_plugins(plugins)
    if ":" not in name and name not in OBJECTIVES:
        raise LookupError(f"unknown loss {shown(name)}; registered are {', '.join(OBJECTIVES.names())}")
    return TokenLoss


class TokenLoss(PreferenceLoss):
    """An objective as a loss of OpenRLHF.

    Args:
        args: OpenRLHF's arguments; `loss_options` is the raw section of the YAML.

    Raises:
        SparsePOError: a key of the section is wrong, or a flag cannot be honoured.
    """

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__(args)
        flags = {"beta": args.model.beta, "label_smoothing": args.model.label_smoothing}
        self.config = LossConfig.from_section(args.loss_options, args.loss, **flags)
        self.config.build_objective()  # its mistakes, before any process is started
        refuse_flags(args, self.config)

    @property
    def loads_reference(self) -> bool:
        """False when no reference is read, or when it is the policy with its LoRA adapter off."""
        return self.config.uses_reference and not shares_reference(self.args)

    def check(self, strategy: Any) -> None:
        """Refuse what cannot work before any model is loaded.

        Raises:
            SparsePOError: a model, a key of the masks, or a row of the data; the line names it.
        """
        self.strategy = strategy
        with met_by_all():
            self.bad_rows = check_run(self.args, strategy, self.config)

    def select_rows(self, dataset: str, split: str, rows: Any) -> Any:
        """The rows of a data set without those that `data.on_bad_row: drop` leaves out; spans of weights as text."""
        bad, column = self.bad_rows[dataset, split], self.config.column
        rows = rows.select([index for index in range(len(rows)) if index not in bad]) if bad else rows
        keys = (self.args.data.chosen_key, self.args.data.rejected_key)
        return rows if column is None else as_text(rows, [key + column.suffix for key in keys])

    def make_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """OpenRLHF's data set of pairs, with the weights of their tokens where a mask reads them."""
        column = self.config.column
        return super().make_dataset(*args, **kwargs) if column is None else WeighedDataset(column, *args, **kwargs)

    def run_options(self) -> dict[str, Any]:
        """Options that a checkpoint must have been written with to be resumed, by key of the YAML."""
        return {**super().run_options(), "ref.share": shares_reference(self.args), **self.config.identity}

    def restored_options(self) -> dict[str, Any]:
        """Options that a checkpoint restores whatever is given now: those of the optimizer's groups."""
        own = {f"{self.config.section}.{key}": getattr(self.config, key) for key in _OF_MASK_GROUP}
        return {**super().restored_options(), **(own if self.config.masks else {})}

    def resume(self, restored: dict[str, Any]) -> None:
        """Describe the run with what its optimizer really has.

        Args:
            restored: What `restored_options` was when the checkpoint was written.
        """
        section = self.config.section
        update = {key: restored[f"{section}.{key}"] for key in _OF_MASK_GROUP if f"{section}.{key}" in restored}
        policy = self.preference_step.policy
        policy.description = policy.description.model_copy(update={"loss": self.config.model_copy(update=update)})

    def check_causality(self) -> Iterator[str]:
        """Look for masks that see more than what comes before a token, on the first row; loads the models they read.

        Returns:
            A line for each mask, after `check`.

        Raises:
            SparsePOError: a mask does; the line names it and the first such token. Or there is none to look at.
        """
        args, config = self.args, self.config
        if not config.masks:
            raise SparsePOError(f"--causality has no effect: loss: {config.loss} reads no masks")
        load = partial(load_decoder, dtype=torch.float32, device="cpu", trust_remote_code=args.model.trust_remote_code)
        model = load(args.ref.model_name_or_path, "ref.model_name_or_path")
        oracle = config.oracle and load(config.oracle, f"{config.section}.oracle")
        text = model.config.get_text_config()
        masks = build_masks(config, text.hidden_size, text.num_hidden_layers, args.train.seed).eval()
        tokenizer, (prompt, *responses) = first_pair(args, self.strategy, model.config)
        encoded = [encode(tokenizer, prompt, response) for response in responses]
        sequences = [torch.tensor(ids[: start + _CAUSALITY_TOKENS]) for ids, start in encoded]
        leaks = first_leak(masks, model, sequences, [start for _, start in encoded], oracle or None)
        for role, _ in masks.named_children():
            name = masks.names[role]
            if role not in leaks:
                yield f"{name}: not looked at, it says of itself that it is not causal"
            elif leaks[role] is None:
                yield f"{name}: sees only the tokens before"
            else:
                raise SparsePOError(
                    f"{name} looks ahead: on the first row the weight of its token {leaks[role]}, counted from 0, "
                    "changes with that token and those after it"
                )

    def wrap(self, model: Any, ref_model: Any | None) -> None:
        """Put the masks into the actor's model, so that both become one DeepSpeed engine.

        Args:
            model: The policy's Actor.
            ref_model: The reference's Actor, or None.
        """
        args, reference = self.args, ref_model and ref_model.model
        with naming_flags():
            policy = HostedPolicy(model.model, reference, self.config, args.train.seed)
        policy.description = self._describe((reference or model.model).config)
        if args.ds.zero_stage == 3:
            prepare_zero_3(policy, getattr(torch, policy.description.dtype))
        model.model = policy
        self.reference = reference
        self.guard = EngineGuard(policy, named)
        reads_nll = args.model.nll_loss_coef > LEAST_COEF
        self.preference_step = PreferenceStep(policy, args.logger.logging_steps, reads_nll, self.guard.note)
        self.oracle = None
        if "oracle_logps" in policy.request.needs:
            self.oracle = _load_oracle(self.config.oracle, args, self.strategy)

    def step(self, trainer: Any, batch: tuple) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, float]]:
        """One micro-batch of OpenRLHF's trainer.

        Args:
            trainer: The DPOTrainer.
            batch: chosen_ids, c_mask, reject_ids and r_mask, on the device, and prompt_id_lens or what stands there of
                a `WeighedDataset`.

        Returns:
            Loss for the backward, preference loss, chosen and rejected rewards [P], and numbers to log.
        """
        _seed(trainer)
        batch, weights = (batch, None) if self.config.column is None else unpack(batch)
        inputs, tokens, pairs = layout(trainer, batch, weights)

        def run_policy(**extra: Any) -> PolicyOutput:
            return HostedPolicy.read(trainer.model(**inputs, **extra))

        with naming_flags():
            output = self.preference_step(
                run_policy,
                tokens,
                reference=trainer.ref_model and Runner(self.reference, partial(trainer.ref_model, **inputs)),
                oracle=self.oracle and Runner(self.oracle[0], partial(self.oracle[1], **inputs)),
                number=trainer.model.model.global_steps + 1,
                batch=pairs,
            )
        loss, logs, flags = output.loss, output.metrics, self.args.model
        if trainer.aux_loss:
            loss = loss + output.aux_loss * flags.aux_loss_coef
        if trainer.nll_loss:
            loss = loss + output.nll_loss * flags.nll_loss_coef
            logs["nll_loss"] = output.nll_loss.item()
        if not torch.is_grad_enabled():  # of an evaluation OpenRLHF logs no rewards
            logs["chosen_reward"] = output.chosen_rewards.mean().item()
            logs["reject_reward"] = output.rejected_rewards.mean().item()
        return loss, output.loss, output.chosen_rewards, output.rejected_rewards, logs

    def update(self, trainer: Any) -> dict[str, float]:
        """The optimizer step after a backward, unless a gradient is not finite.

        Args:
            trainer: The DPOTrainer.

        Returns:
            Where steps may be left out, how many were so far.

        Raises:
            SparsePOError: a gradient is not finite, and the run does not skip such steps.
        """
        engine = trainer.model.model
        self.guard.check_gradients(engine, self.preference_step.gradients)
        super().update(trainer)
        skips = self.config.on_nonfinite == "skip" or engine.fp16_enabled()
        return {"skipped_steps": float(engine.skipped_steps)} if skips else {}

    def before_save(self, model: Any) -> None:
        """Refuse to save weights that are not finite.

        Args:
            model: The policy's Actor.

        Raises:
            SparsePOError: names the first one.
        """
        self.guard.check_weights(model.model.global_steps)

    def start(self, step: int) -> None:
        """Open the run's record.

        Args:
            step: The optimizer step that the run goes on from.
        """
        self.record = RunRecord(self.args, self.strategy, step)

    def progress(self, logs: dict[str, float]) -> dict[str, str]:
        """What the progress bar shows of a micro-batch or an evaluation: a few columns, not all numbers."""
        return self.record.progress(logs)

    def log(self, step: int, logs: dict[str, float], split: Split) -> None:
        """Record the numbers of a step, beside the host's own loggers."""
        self.record.log(step, logs, split)

    def finish(self, output_dir: str) -> None:
        """Write the model card of the run, and print its summary."""
        self.record.finish(self.preference_step.policy.description)

    def _describe(self, read: Any) -> RunDescription:
        """The run, for whoever asks it later; `read` is the config of the model that the masks read."""
        args, text = self.args, read.get_text_config()
        chat = bool(args.data.apply_chat_template)
        shared = self.config.uses_reference and shares_reference(args)
        named = args.model.model_name_or_path if shared else args.ref.model_name_or_path
        return RunDescription(
            versions=versions_of("openrlhf", "deepspeed", "peft"),
            host="openrlhf",
            loss=self.config,
            loss_plugins=args.loss_plugins,
            base_model=args.model.model_name_or_path,
            reference=named if self.config.uses_reference else None,
            shared_reference=shared,
            dtype=_DTYPES[args.ds.param_dtype],
            hidden_size=text.hidden_size,
            num_layers=text.num_hidden_layers,
            joining=Joining(
                input_template=args.data.input_template if args.data.prompt_key and not chat else None,
                chat_template=chat,
            ),
        )


def _seed(trainer: Any) -> None:
    """Draw by the number of the micro-batch: dropout in a resumed run is that of a run that was never stopped."""
    engine, strategy = trainer.model.model, trainer.strategy
    micro_batch = engine.micro_steps % engine.gradient_accumulation_steps()  # counted from 0 again after a resume
    torch.manual_seed(hash((strategy.args.train.seed, strategy.get_rank(), engine.global_steps, micro_batch)))


def _load_oracle(name: str, args: SimpleNamespace, strategy: Any) -> tuple[Any, Any]:
    """The oracle's Hugging Face model, and its Actor with DeepSpeed's engine around it, loaded like a reference."""
    from openrlhf.cli.train_dpo import load_reference

    ref = SimpleNamespace(**{**vars(args.ref), "model_name_or_path": name})
    actor = load_reference(SimpleNamespace(**{**vars(args), "ref": ref}), strategy)
    model = actor.model
    return model, strategy.prepare(actor).eval()
