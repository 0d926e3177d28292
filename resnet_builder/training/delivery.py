"""What a run is for: weights to use, their metrics on the test images, and a result."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor, nn

from resnet_builder.data.batches import evaluation_batches
from resnet_builder.data.interfaces import ImageSource, Stop
from resnet_builder.data.splits import DataSplits
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog, RuntimeConfig
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.schema import Spec
from resnet_builder.training.callbacks import Observer
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext
from resnet_builder.training.evaluation import evaluate
from resnet_builder.training.metrics import Evaluation
from resnet_builder.training.plan import Plan
from resnet_builder.training.result import Result, make_result
from resnet_builder.training.rows import evaluation_row
from resnet_builder.training.state import State, host_copy, load_weights
from resnet_builder.weights.file import WeightsHeader, save_weights


@dataclass(frozen=True)
class Delivery:
    """Evaluates and publishes what a training came to.

    Attributes:
        run: Where to.
        spec: The experiment, resolved.
        splits: Its images.
        state: What was trained.
        plan: Its lengths.
        choices: How it is computed.
        ctx: The processes that trained; all evaluate, its leader alone writes.
    """

    run: RunDirectory
    spec: Spec
    splits: DataSplits
    state: State
    plan: Plan
    choices: RuntimeConfig
    ctx: DistributedContext = SINGLE_PROCESS

    @cached_property
    def _spec_text(self) -> str:
        return dump_spec(self.spec)

    def validate(self, stop: Stop) -> Evaluation:
        """Evaluate the present weights on the validation images, in training's precision.

        Raises:
            Stopped: ``stop`` became true.
        """
        assert self.splits.validation is not None, "asked only where there are any"
        bf16 = self.choices.precision == "bf16"
        return self._evaluate(self.state.evaluated_model, self.splits.validation, stop, bf16=bf16)

    def publish_best(self) -> None:
        """Write the weights that did best on validation so far.

        Raises:
            StorageError: The disk is full, read-only or failing.
        """
        counters = self.state.counters
        self._publish(self.run.best, self.state.best_weights, counters.best_step, counters.best)

    def finish(self, observer: Observer, stop: Stop) -> Result:
        """Publish the last weights and the selected ones, tested once, in fp32, and the result.

        The selected weights are those that did best on validation, or the last where there is
        none. The network holds them from then on.

        Raises:
            NonFiniteError: A weight is not finite.
            StorageError: The disk is full, read-only or failing.
            Stopped: ``stop`` became true.
        """
        counters = self.state.counters
        last = host_copy(self.state.evaluated_model)
        self._publish(self.run.last, last, counters.step, counters.validation)
        step, metrics = (
            (counters.best_step, counters.best) if counters.best else (counters.step, {})
        )
        selected = self.state.best_weights or last
        load_weights(self.state.model, selected)
        test = self._test(step, observer, stop)
        tested = {} if test is None else test.metrics("test")
        self._publish(self.run.best, selected, step, {**metrics, **tested})
        result = self.ctx.run_on_main(partial(self._conclude, test))
        observer.finished(result)
        return result

    def _conclude(self, test: Evaluation | None) -> Result:
        result = make_result(
            self.state.model,
            self.spec,
            self.run,
            self.state.counters,
            self.choices,
            test,
            self.splits.classes,
        )
        result.record.write(self.run.result)
        return result

    def _test(self, step: int, observer: Observer, stop: Stop) -> Evaluation | None:
        if self.splits.test is None:
            return None
        test = self._evaluate(self.state.model, self.splits.test, stop, bf16=False)
        if self.ctx.is_main_process:
            MetricsLog(self.run).append(evaluation_row("test", step, self.plan, test))
        observer.evaluated(step, "test", test, best=False)
        return test

    def _evaluate(
        self, model: nn.Module, source: ImageSource, stop: Stop, *, bf16: bool
    ) -> Evaluation:
        self.ctx.broadcast_buffers(model)
        batches = evaluation_batches(
            source,
            batch_size=self.plan.part_size,
            mean=self.splits.mean,
            std=self.splits.std,
            device=next(model.parameters()).device,
            share=self.ctx.shard,
        )
        return evaluate(
            model, batches, bf16=bf16, cpu_kernels=self.choices.cpu_kernels, stop=stop, ctx=self.ctx
        )

    def _publish(
        self, path: Path, weights: Mapping[str, Tensor], step: int, metrics: Mapping[str, float]
    ) -> None:
        if not self.ctx.is_main_process:
            return
        assert self.spec.data is not None, "a spec to train has data"
        header = WeightsHeader(
            spec=self._spec_text,
            classes=self.splits.classes,
            mean=self.splits.mean,
            std=self.splits.std,
            preprocess=self.spec.data.preprocess,
            metrics=metrics,
            step=step,
        )
        save_weights(path, weights, header)
