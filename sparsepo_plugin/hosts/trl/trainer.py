"""`SparsePOTrainer`: TRL's DPO trainer, whose step is the host-neutral one."""

from collections.abc import Mapping
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerState, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOTrainer
from trl.data_utils import is_conversational
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import get_config_model_id

from ...card import write_card
from ...checkpoint import RunDescription, restore_masks, save_masks, versions_of
from ...decoder import load_decoder
from ...errors import SparsePOError
from ...layout import Batch
from ...record import MetricsFile, summary
from ...reference import Runner
from ...step import PreferenceStep, StepOutput
from ...texts import Joining
from ...tokens import ResponseTokens
from ..models import check_head
from .checks import check_models
from .config import SparsePOTrainerConfig, read_loss
from .guard import LoopGuard
from .keys import named, naming_flags
from .logs import SHORT, numbers_of
from .policy import AttachedPolicy
from .resume import refuse_other_run
from .weighed import COLUMNS, Weigher, WeighingCollator, weighed

OBJECTIVE = "objective.safetensors"  # buffers of an objective that has some, in a checkpoint


class SparsePOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` with the losses and masks of this plugin; what it does not name is as in TRL.

    Args:
        model: The policy: a model, a PEFT model, or the name of a model.
        ref_model: The reference; by default another copy of the policy, or the policy without its adapter.
        args: Arguments, the loss among them.
        **kwargs: As of `DPOTrainer`.

    Raises:
        SparsePOError: an argument, a model, or a key of the loss cannot be used; the line names it.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "dpo", "sparsepo"]

    def __init__(
        self, model: Any, ref_model: Any = None, args: SparsePOTrainerConfig | None = None, **kwargs: Any
    ) -> None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        args = args or SparsePOTrainerConfig(f"{name.split('/')[-1]}-SparsePO")
        config = read_loss(args)
        if kwargs.get("compute_metrics"):
            raise SparsePOError("compute_metrics: cannot be used, logits are never computed as a whole")
        check_models(args, config, model, ref_model, kwargs.get("peft_config"))
        joining = Joining(chat_template=_is_chat(kwargs.get("train_dataset")), end="appended")

        self._loss_config = config  # for the rows, which TRL prepares before it has made anything

        host_args = copy(args)
        host_args.disable_dropout = False  # of the policy's config alone, by the loss's section
        host_args.precompute_ref_log_probs = not config.uses_reference  # or TRL would load one
        set_seed(args.seed)  # the start of an adapter is drawn, and older releases of TRL seed after that
        super().__init__(model, ref_model, host_args, **kwargs)
        self.args.precompute_ref_log_probs = self.precompute_ref_logps = False

        if config.column is not None:
            self._weigh_batches()
        check_head("peft_config", self.model)
        reference = None if self.ref_model is None else self.accelerator.unwrap_model(self.ref_model)
        with naming_flags():
            self.masked = AttachedPolicy(self.model, reference, config, args.seed)
        self.reference = reference
        self.oracle = self._load_oracle(config.oracle)
        self.description = self._describe(joining)
        self.guard = self._make_guard()
        self.step = PreferenceStep(self.masked, on_fault=self.guard.note)
        self.metrics_file: MetricsFile | None = None
        self._skipped_steps = 0
        for usual, short in SHORT.items():
            if self.pop_callback(usual):
                self.add_callback(short)

    # Weights that rows bring

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """TRL's, with the weights of all tokens where a mask reads them."""
        if self._loss_config.column is None:
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        weigher = self._weigher(tokenizer, dataset)
        weigher.check(dataset, dataset_name)
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        return weigher.weigh(prepared, tokenizer, args.dataset_num_proc)

    def _weigher(self, tokenizer: Any, dataset: Any) -> Weigher:
        """What gives a data set's tokens their weights."""
        return Weigher(self._loss_config.column, self._loss_config.section)

    def _weigh_batches(self) -> None:
        if self._is_vision_dataset:
            raise SparsePOError("train_dataset: mask 'column' reads weights of text, not of rows with images")
        keeps_end = self.args.truncation_mode == "keep_end"
        self.data_collator = WeighingCollator(self.data_collator, keeps_end)

    def _set_signature_columns_if_needed(self) -> None:
        """TRL's columns that are not dropped, and those of weights."""
        super()._set_signature_columns_if_needed()
        self._signature_columns += [column for column in COLUMNS if column not in self._signature_columns]

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Nothing is computed ahead: TRL asks where the loss reads no reference."""
        return dataset

    def _load_oracle(self, name: str | None) -> Runner | None:
        """The oracle's Hugging Face model, and what runs it, prepared like a reference."""
        if name is None:
            return None
        dtype, device, code = self.model.dtype, self.accelerator.device, self.args.trust_remote_code
        model = load_decoder(name, "oracle", dtype=dtype, device=device, trust_remote_code=code)
        model.requires_grad_(False)
        if self.is_deepspeed_enabled:
            return Runner(model, prepare_deepspeed(model, self.accelerator))
        if self.is_fsdp_enabled:
            return Runner(model, prepare_fsdp(model, self.accelerator))
        return Runner(model, self.accelerator.prepare_model(model, evaluation_mode=True))

    def _make_guard(self) -> Any:
        """What keeps numbers that are not finite out of weights and files; under ZeRO-3 the masks are made ready."""
        if not self.is_deepspeed_enabled:
            return LoopGuard(self.masked, named)
        from ..engine import EngineGuard, prepare_zero_3

        if self.args.deepspeed_plugin.zero_stage == 3:
            prepare_zero_3(self.masked, self.model.dtype)
        return EngineGuard(self.masked, named)

    def _describe(self, joining: Joining) -> RunDescription:
        """The run, for whoever asks it later."""
        config, text = self.masked.loss_config, (self.reference or self.model).config.get_text_config()
        base = get_config_model_id(self.model.config)
        reference = base if self.reference is None else get_config_model_id(self.reference.config)
        return RunDescription(
            versions=versions_of("trl", "accelerate", "peft", "deepspeed"),
            host="trl",
            loss=config,
            loss_plugins=self.args.loss_plugins,
            base_model=base,
            reference=reference if config.uses_reference else None,
            shared_reference=self.masked.shares_reference,
            dtype=str(self.model.dtype).removeprefix("torch."),
            hidden_size=text.hidden_size,
            num_layers=text.num_hidden_layers,
            joining=joining,
        )

    # The step

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """TRL's optimizer, with the masks moved to a group of their own, the last.

        Raises:
            SparsePOError: the optimizer has no groups that this can be done with.
        """
        super().create_optimizer(model)
        own = self.masked.mask_group()
        if own is None or not isinstance(self.optimizer, torch.optim.Optimizer):
            return self.optimizer
        masks, groups = {id(parameter) for parameter in own["params"]}, self.optimizer.param_groups
        if {id(parameter) for parameter in groups[-1]["params"]} == masks:  # of an earlier training
            return self.optimizer
        before = sum(len(group["params"]) for group in groups)
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in masks]
        if before - sum(len(group["params"]) for group in groups) != len(masks):
            name = getattr(self.args.optim, "value", self.args.optim)
            raise SparsePOError(
                f"optim: {name} does not hold the masks' parameters in its groups; leave the optimizer to the "
                "trainer, and take one that all parameters can be given to"
            )
        self.optimizer.add_param_group(own)
        return self.optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's step, after whose last backward the gradients are looked at."""
        self.step.logging_steps = self._logging_steps()
        if self.is_deepspeed_enabled:
            self._guard_engine()
            return super().training_step(*args, **kwargs)
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self.guard.check_gradients(self, self.step.gradients)
            self._count_skipped(bool(self.optimizer.step_was_skipped))
        return loss

    def _logging_steps(self) -> int:
        return max(int(self.state.logging_steps), 1) if self.args.logging_strategy == "steps" else 1

    def _guard_engine(self) -> None:
        """Have the engine look at the gradients between backward and update, both of which accelerate calls."""
        engine = self.deepspeed
        if hasattr(engine.step, "guarded"):
            return
        update = engine.step

        def step(*args: Any, **kwargs: Any) -> None:
            self.guard.check_gradients(engine, self.step.gradients)
            skipped = engine.skipped_steps
            update(*args, **kwargs)
            self._count_skipped(engine.skipped_steps > skipped)

        step.guarded = True
        engine.step = step

    def _count_skipped(self, skipped: bool) -> None:
        self._skipped_steps += skipped
        if self.masked.loss_config.on_nonfinite == "skip" or self.args.fp16:
            self._metrics["train"]["skipped_steps"] = [float(self._skipped_steps)]

    def _compute_loss(self, model: nn.Module, inputs: Mapping[str, Tensor], return_outputs: bool) -> Tensor:
        """One micro-batch.

        Args:
            model: The policy, as the launcher has wrapped it.
            inputs: input_ids, attention_mask and completion_mask, chosen sequences first. [2P, T].
            return_outputs: Must be false.
        """
        if return_outputs:
            raise SparsePOError("predict and compute_metrics cannot be used: logits are never computed as a whole")
        training = self.model.training
        ids, attention = inputs["input_ids"], inputs["attention_mask"]
        batch = {"input_ids": ids, "attention_mask": attention, "use_cache": False}
        of_experts = {"output_router_logits": True} if self.aux_loss_enabled else {}
        tokens = weighed(ResponseTokens.from_mask(ids, inputs["completion_mask"], attention), inputs)
        with naming_flags():
            output = self.step(
                partial(model, **batch, **of_experts),
                tokens,
                reference=self.reference and Runner(self.reference, partial(self.ref_model, **batch)),
                oracle=self.oracle and Runner(self.oracle.model, partial(self.oracle.run, **batch)),
                number=self.state.global_step + 1 if training else 0,
                batch=Batch(ids, attention),
            )
        loss, numbers = output.loss, _numbers(output, tokens)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * output.aux_loss
            numbers["aux_loss"] = output.aux_loss.item()
        self._record("train" if training else "eval", numbers, int(attention.sum()))
        return loss

    def _record(self, mode: str, numbers: dict[str, float], tokens: int) -> None:
        """Add the mean of all processes to what is logged next."""
        mine = torch.tensor([*numbers.values(), tokens], dtype=torch.float64, device=self.accelerator.device)
        *means, tokens_mean = self.accelerator.gather(mine[None]).mean(0).tolist()
        for name, mean in zip(numbers, means, strict=True):
            self._metrics[mode][name].append(mean)
        if mode == "train":
            self._total_train_tokens += round(tokens_mean * self.accelerator.num_processes)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    # What is written

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """TRL's log, which puts the numbers of the steps into `logs`; the metrics file gets them too."""
        super().log(logs, *args, **kwargs)
        split, numbers = numbers_of(logs)
        if self.metrics_file and "loss" in numbers:
            self.metrics_file.write(self.state.global_step, numbers, split)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """TRL's training; at its end the model card is written and a summary printed.

        Raises:
            SparsePOError: the checkpoint is one of another run.
        """
        checkpoint, resumed_at = resume_from_checkpoint, 0
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)
        if checkpoint:
            refuse_other_run(checkpoint, self.description)
            resumed_at = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")).global_step
        if self.is_world_process_zero():
            self.metrics_file = MetricsFile(self.args.output_dir, resumed_at)
        output = super().train(checkpoint or resume_from_checkpoint, *args, **kwargs)
        self.create_model_card()
        if self.is_world_process_zero():
            print(summary(self.args.output_dir))
        return output

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write the model card of the run in place of TRL's, with loss, options, numbers and paper."""
        if self.is_world_process_zero():
            write_card(self.args.output_dir, self.description, [dataset_name] if dataset_name else self._sources())

    def _sources(self) -> list[str]:
        """Where the training pairs came from, as far as the data set remembers."""
        data = self.train_dataset
        name = getattr(data.info, "dataset_name", None) or "in memory"
        return [f"{name}, {data.num_rows} pairs" if hasattr(data, "num_rows") else name]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """TRL's; weights that are not finite are not saved.

        Raises:
            NonFinite: names the first one.
        """
        self.guard.check_weights(self.state.global_step)
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The policy without the masks, and the masks beside it."""
        state = self.model.state_dict() if state_dict is None else state_dict
        parts = self.masked.split(state)
        super()._save(output_dir, state_dict=parts["policy"])
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        save_masks(folder, self.description, parts["masks"])
        if parts["objective"]:
            save_file(parts["objective"], folder / OBJECTIVE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._restore(self.state.best_model_checkpoint)

    def _restore(self, checkpoint: str) -> None:
        """Masks and the objective's buffers; DeepSpeed and FSDP load theirs with the model's."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return
        if self.masked.masks:
            restore_masks(self.masked.masks, checkpoint)
        if (Path(checkpoint) / OBJECTIVE).is_file():
            self.masked.objective.load_state_dict(load_file(Path(checkpoint) / OBJECTIVE))


def _is_chat(dataset: Any) -> bool:
    """Whether the rows of a data set are messages."""
    return dataset is not None and is_conversational(next(iter(dataset)))


def _numbers(output: StepOutput, tokens: ResponseTokens) -> dict[str, float]:
    """The numbers of a step, those that TRL has too under its names."""
    chosen, rejected = output.chosen_rewards, output.rejected_rewards
    numbers = {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/accuracies": (chosen > rejected).float().mean(),
        "rewards/margins": (chosen - rejected).mean(),
    }
    if output.full_statistics:
        halves = tokens.sum(output.statistics.policy_logps).chunk(2)
        numbers |= {"logps/chosen": halves[0].mean(), "logps/rejected": halves[1].mean()}
    values = torch.stack(list(numbers.values())).tolist()
    return dict(zip(numbers, values, strict=True)) | output.metrics
