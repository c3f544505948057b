"""The loop: what it feeds, what it learns, and what it says and restores when something goes bad."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vi_tutorial.elbo import draw, elbo
from vi_tutorial.families import MeanFieldNormal
from vi_tutorial.models import conjugate_normal
from vi_tutorial.training import DivergedError, History, fit, frozen

pytestmark = pytest.mark.usefixtures("_float64")


def parameter(value: float = 0.0) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value))


def sgd(*parameters: nn.Parameter, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)


def rows_seen(num_data: int, num_steps: int, batch_size: int | None, seed: int = 0) -> list[list[int]]:
    """The row numbers of each step's minibatch."""
    seen: list[list[int]] = []
    level = parameter()

    def objective(x: Tensor) -> Tensor:
        seen.append([int(v) for v in x[:, 0]])
        return -((x[:, 0] - level) ** 2)

    data = torch.arange(num_data).double()[:, None].expand(num_data, 2)
    generator = torch.Generator().manual_seed(seed)
    fit(objective, sgd(level, lr=1e-9), data, num_steps=num_steps, batch_size=batch_size, generator=generator)
    return seen


# --- What it feeds --------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=20)
@given(num_data=st.integers(1, 12), share=st.floats(0, 1), epochs=st.integers(1, 3))
def test_each_epoch_visits_every_row_once(num_data: int, share: float, epochs: int) -> None:
    batch_size = 1 + int(share * (num_data - 1))
    steps = math.ceil(num_data / batch_size)
    seen = rows_seen(num_data, epochs * steps, batch_size)
    sizes = [batch_size] * (num_data // batch_size) + [num_data % batch_size] * (num_data % batch_size > 0)
    for epoch in range(epochs):
        batches = seen[epoch * steps : (epoch + 1) * steps]
        assert sorted(itertools.chain(*batches)) == list(range(num_data))
        assert [len(batch) for batch in batches] == sizes  # the last one may be short, and is not dropped


def test_the_order_is_fresh_each_epoch_and_given_by_the_generator() -> None:
    first = rows_seen(50, 20, 5, seed=1)
    assert first == rows_seen(50, 20, 5, seed=1)
    assert first != rows_seen(50, 20, 5, seed=2)
    assert first[:10] != first[10:]


def test_without_a_generator_torchs_own_seed_gives_the_order() -> None:
    orders = []
    for _ in range(2):
        torch.manual_seed(4)
        seen: list[float] = []
        level = parameter()
        data = torch.arange(20.0)
        fit(
            lambda x, s=seen, p=level: (s.extend(x.tolist()), -((x - p) ** 2))[1],
            sgd(level),
            data,
            num_steps=4,
            batch_size=5,
        )
        orders.append(seen)
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0])


def test_without_a_batch_size_every_step_gets_all_rows_in_order() -> None:
    assert rows_seen(6, 3, None) == [list(range(6))] * 3


# --- What it learns -------------------------------------------------------------------------------


def test_a_step_climbs_the_mean_of_the_objective() -> None:
    """SGD by hand: the gradient of −mean (x − p)² is 2 (x̄ − p). A sum, or a minus sign, would step elsewhere."""
    level, data = parameter(1.0), torch.tensor([2.0, 4.0, 9.0])
    history = fit(lambda x: -((x - level) ** 2), sgd(level, lr=0.1), data, num_steps=1)
    assert level.item() == pytest.approx(1 + 0.1 * 2 * (5 - 1), abs=1e-14)
    assert history.bound == [pytest.approx(-(1 + 9 + 64) / 3, abs=1e-13)]


def test_the_history_holds_each_steps_bound_before_the_step() -> None:
    level = parameter()
    history = fit(lambda x: -((x - level) ** 2), sgd(level, lr=0.25), torch.tensor([4.0]), num_steps=4)
    assert history.bound == [-16.0, -4.0, -1.0, -0.25]  # each step halves the distance
    assert history.validation == []
    assert history.stopped_early is False
    assert history.seconds > 0


@pytest.mark.parametrize(
    ("optimiser", "num_steps"),
    [
        (lambda p: torch.optim.Adam(p, lr=0.05), 1500),
        (lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe"), 5),
        (lambda p: torch.optim.LBFGS(p, lr=0.5), 10),
    ],
    ids=["Adam", "L-BFGS", "L-BFGS without line search"],
)
def test_optimisers_reach_the_maximum(optimiser: Callable[[object], torch.optim.Optimizer], num_steps: int) -> None:
    """Maximum likelihood of a Normal: mean and standard deviation of the data."""
    data = torch.tensor([1.0, 2.0, 4.0, 9.0])
    loc, log_scale = parameter(), parameter()
    history = fit(
        lambda x: torch.distributions.Normal(loc, log_scale.exp()).log_prob(x),
        optimiser([loc, log_scale]),
        data,
        num_steps=num_steps,
    )
    assert loc.item() == pytest.approx(4, abs=1e-3)
    assert log_scale.exp().item() == pytest.approx(math.sqrt(9.5), abs=1e-3)
    assert len(history.bound) == num_steps  # L-BFGS evaluates more often, and records once a step


def test_the_elbo_climbs_to_the_evidence() -> None:
    model, x = conjugate_normal(3), torch.tensor([1.0, 2.0, 5.0])
    q = MeanFieldNormal(1)
    noise = torch.randn(32, 1)
    noise = (noise - noise.mean()) / noise.std(correction=0)

    def objective(x: Tensor) -> Tensor:
        return elbo(_frozen(model.given(x), q, noise))

    optimiser = torch.optim.LBFGS(q.parameters(), max_iter=50, line_search_fn="strong_wolfe", tolerance_grad=1e-12)
    fit(objective, optimiser, x, num_steps=3)
    assert objective(x).item() == pytest.approx(model.log_evidence(x).item(), abs=1e-9)
    assert q().mean.item() == pytest.approx(2, abs=1e-5)


def _frozen(log_joint: Callable[[Tensor], Tensor], q: MeanFieldNormal, noise: Tensor) -> Tensor:
    z = q().mean + q().stddev * noise
    return log_joint(z) - q().log_prob(z)


def test_a_single_number_stands_for_data_that_are_one_datapoint() -> None:
    level = parameter()
    history = fit(lambda x: -((x - level) ** 2).sum(), sgd(level, lr=0.25), torch.ones(2), num_steps=1)
    assert history.bound == [-2.0]
    assert level.item() == 1.0


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_parameters_do_not_move(frozen: int) -> None:
    pair = [parameter(1.0), parameter(2.0)]
    pair[frozen].requires_grad_(False)
    fit(lambda x: -((x - pair[0] * pair[1]) ** 2), torch.optim.Adam(pair, lr=0.1), torch.ones(3), num_steps=3)
    assert pair[frozen].item() == [1.0, 2.0][frozen]
    assert pair[1 - frozen].item() != [1.0, 2.0][1 - frozen]


def test_the_same_generators_give_the_same_run() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model, q = conjugate_normal(1), MeanFieldNormal(1)
        data = torch.arange(8.0)[:, None]
        history = fit(
            lambda x, m=model, q=q: elbo(draw(m.given(x), q().expand((len(x),)), 2).log_weight),
            torch.optim.Adam(q.parameters(), lr=0.1),
            data,
            num_steps=10,
            batch_size=3,
            generator=torch.Generator().manual_seed(1),
        )
        runs.append((history.bound, q.loc.item()))
    assert runs[0] == runs[1]


def test_the_callback_is_told_how_many_steps_are_done() -> None:
    level, calls = parameter(), []
    fit(
        lambda x: -((x - level) ** 2),
        sgd(level, lr=0.25),
        torch.tensor([4.0]),
        num_steps=3,
        callback=lambda step: calls.append((step, level.item())),
    )
    assert calls == [(1, 2.0), (2, 3.0), (3, 3.5)]


def test_objective_is_called_with_gradient_even_under_no_grad() -> None:
    level = parameter()
    with torch.no_grad():
        fit(lambda x: -((x - level) ** 2), sgd(level, lr=0.25), torch.tensor([4.0]), num_steps=1)
    assert level.item() == 2.0


# --- Validation and early stopping ----------------------------------------------------------------


def _climb_past(peak: float, *, num_steps: int, patience: int | None, every: int = 1) -> tuple[nn.Parameter, History]:
    """The training objective climbs by one a step for ever; the held-out one peaks."""
    level = parameter()

    def validate() -> Tensor:
        assert not torch.is_grad_enabled()
        return -((level - peak) ** 2).expand(3)

    history = fit(
        lambda x: level * torch.ones(len(x)),
        sgd(level, lr=1.0),
        torch.ones(2),
        num_steps=num_steps,
        validate=validate,
        validate_every=every,
        patience=patience,
    )
    return level, history


def test_validation_runs_without_gradient_every_so_many_steps() -> None:
    level, history = _climb_past(4.0, num_steps=7, patience=None, every=3)
    assert history.validation == [(3, -1.0), (6, -4.0)]
    assert level.item() == 7
    assert history.stopped_early is False


@pytest.mark.parametrize("patience", [1, 2])
def test_early_stopping_goes_back_to_the_best(patience: int) -> None:
    level, history = _climb_past(3.0, num_steps=20, patience=patience)
    assert level.item() == 3
    assert [steps for steps, _ in history.validation] == list(range(1, 4 + patience))
    assert history.stopped_early is True
    assert len(history.bound) == 3 + patience


def test_a_new_best_renews_the_patience() -> None:
    """Held-out values 1, 0, 2, 1, 0: with a patience of two, it ends after the fifth, at the third."""
    level, values = parameter(), iter([1.0, 0.0, 2.0, 1.0, 0.0, 9.0])
    history = fit(
        lambda x: level * torch.ones(len(x)),
        sgd(level, lr=1.0),
        torch.ones(2),
        num_steps=6,
        validate=lambda: torch.tensor(next(values)),
        validate_every=1,
        patience=2,
    )
    assert level.item() == 3
    assert [value for _, value in history.validation] == [1, 0, 2, 1, 0]


def test_an_equal_value_is_no_new_best() -> None:
    level = parameter()
    history = fit(
        lambda x: level * torch.ones(len(x)),
        sgd(level, lr=1.0),
        torch.ones(2),
        num_steps=9,
        validate=lambda: torch.tensor(0.0),
        validate_every=1,
        patience=2,
    )
    assert level.item() == 1
    assert len(history.bound) == 3


# --- Holding parameters still ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.LBFGS], ids=["Adam", "L-BFGS"])
def test_what_is_frozen_stays_where_it_is_while_the_rest_is_fitted(make: object) -> None:
    theta, phi = nn.Linear(1, 1), nn.Linear(1, 1)
    optimiser = make([*theta.parameters(), *phi.parameters()])  # type: ignore[operator]
    x = torch.randn(20, 1)

    def objective(x: Tensor) -> Tensor:
        return -(phi(theta(x)) - 3 * x + 1).square().squeeze(-1)

    for held, moved in ((theta, phi), (phi, theta)):
        before = copy.deepcopy(held.state_dict()), copy.deepcopy(moved.state_dict())
        with frozen(held):
            fit(objective, optimiser, x, num_steps=5)
        assert all(torch.equal(held.state_dict()[name], value) for name, value in before[0].items())
        assert not any(torch.equal(moved.state_dict()[name], value) for name, value in before[1].items())


def test_gradients_still_flow_through_a_frozen_module_to_what_comes_before() -> None:
    theta, phi = nn.Linear(1, 1), nn.Linear(1, 1)
    with frozen(theta):
        theta(phi(torch.ones(1, 1))).sum().backward()
    assert phi.weight.grad is not None
    assert theta.weight.grad is None


def test_each_parameters_switch_goes_back_to_where_it_was_after_errors_and_when_nested() -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    first.bias.requires_grad_(False)
    switches = [True, False, True, True]

    def now() -> list[bool]:
        return [p.requires_grad for p in itertools.chain(first.parameters(), second.parameters())]

    with frozen(first, second):
        assert now() == [False] * 4
        with frozen(first):
            pass
        assert now() == [False] * 4
    assert now() == switches
    with pytest.raises(RuntimeError, match="of the block"), frozen(first, second):
        raise RuntimeError("of the block")
    assert now() == switches


# --- When something goes bad ----------------------------------------------------------------------


def test_a_nan_names_term_step_and_datapoint_and_the_last_good_parameters_return() -> None:
    """log(4 − p) is NaN once p passes 4, for the rows that ask for it."""
    level, data = parameter(), torch.tensor([0.0, 1.0, 0.0, 1.0])
    good: list[float] = []

    def objective(x: Tensor) -> Tensor:
        value = torch.where(x > 0, (4 - level).log() + 3 * level, level)
        if len(x) == 4 and value.isfinite().all():
            good.append(level.item())
        return value

    with pytest.raises(DivergedError, match=r"step \d+, datapoint\(s\) 1, 3: the objective is nan") as error:
        fit(objective, sgd(level, lr=1.0), data, num_steps=20)
    assert error.value.datapoints == [1, 3]
    assert error.value.step == len(error.value.history.bound) >= 1
    assert level.item() == good[-1]
    assert error.value.history.bound[-1] == pytest.approx(objective(data).mean().item(), abs=1e-14)


def test_the_first_bad_rows_of_a_minibatch_are_named_by_their_place_in_the_data() -> None:
    data = torch.arange(100.0)
    level = parameter()

    def objective(x: Tensor) -> Tensor:
        return torch.where(x == 73, math.inf, -((x - level) ** 2))

    with pytest.raises(DivergedError) as error:
        fit(objective, sgd(level, lr=1e-6), data, num_steps=30, batch_size=7)
    assert error.value.datapoints == [73]
    assert 0 <= error.value.step < 15


def test_a_nan_in_a_named_term_keeps_its_name() -> None:
    model, q = conjugate_normal(1), MeanFieldNormal(1)
    calls = itertools.count()

    def objective(x: Tensor) -> Tensor:
        broken = next(calls) >= 2
        return elbo(draw(lambda z: model.given(x)(z) * (math.nan if broken else 1), q().expand((len(x),))).log_weight)

    with pytest.raises(DivergedError, match=r"step 2.*log_joint is NaN") as error:
        fit(objective, sgd(*q.parameters(), lr=1e-3), torch.ones(3, 1), num_steps=5)
    assert error.value.step == 2


def test_parameters_that_overflow_are_named_and_restored() -> None:
    model, q = conjugate_normal(1), MeanFieldNormal(1)
    before = copy.deepcopy(q.state_dict())

    def objective(x: Tensor) -> Tensor:
        return elbo(draw(model.given(x), q().expand((len(x),))).log_weight)

    with pytest.raises(DivergedError, match=r"step 1.*scale must be finite") as error:
        fit(objective, sgd(q.log_scale, lr=1e6), torch.full((3, 1), 1e3), num_steps=5)
    assert error.value.step == 1
    assert all(torch.equal(value, before[name]) for name, value in q.state_dict().items())


@pytest.mark.parametrize("num_steps", [1, 2])
def test_parameters_never_come_back_infinite_not_even_from_the_last_step(num_steps: int) -> None:
    level = parameter(1.0)
    with pytest.raises(DivergedError) as error:
        fit(lambda x: -((x - level) ** 2), sgd(level, lr=math.inf), torch.full((3,), 3.0), num_steps=num_steps)
    assert level.item() == 1.0
    assert error.value.history.bound == [-4.0]


def test_an_infinite_gradient_of_a_finite_objective_is_found() -> None:
    """√ at zero: the value is 0, the slope is not finite."""
    level = parameter(1.0)

    def objective(x: Tensor) -> Tensor:
        return (x - level).abs().sqrt()

    with pytest.raises(DivergedError, match=r"step 0.*the gradient is not finite") as error:
        fit(objective, sgd(level), torch.tensor([5.0, 1.0, 7.0]), num_steps=3)
    assert level.item() == 1.0
    assert error.value.datapoints == [1]


def test_a_collapse_is_found_at_its_step() -> None:
    """The step is so long that each one multiplies the distance by −99: finite for long yet, and lost."""
    level = parameter()
    with pytest.raises(DivergedError, match=r"step 2: the objective has collapsed from -1 to -9.606e\+07") as error:
        fit(lambda x: -((x - level) ** 2), sgd(level, lr=50.0), torch.ones(2), num_steps=100)
    assert error.value.history.bound == pytest.approx([-1, -(99.0**2)])
    assert level.item() == pytest.approx(1 + 99)  # where the second value was seen
    assert error.value.datapoints == []


def test_a_fall_short_of_a_collapse_is_not_one() -> None:
    """From −1, a million times two: at −1.9 million training goes on, at −2.1 million it does not."""
    values = itertools.chain([-1.0, -1.9e6], itertools.repeat(-2.1e6))
    level = parameter()
    with pytest.raises(DivergedError) as error:
        fit(lambda x: (next(values) + 0 * level).expand(len(x)), sgd(level), torch.ones(2), num_steps=3)
    assert error.value.step == 2


def test_l_bfgs_restores_what_the_step_began_with() -> None:
    level = parameter(0.5)

    def objective(x: Tensor) -> Tensor:
        return (3 * level).expand(len(x)) + (2 - level).log()

    with pytest.raises(DivergedError, match=r"step 0.*nan"):
        fit(objective, torch.optim.LBFGS([level], lr=10.0), torch.ones(2), num_steps=5)
    assert level.item() == 0.5


def test_the_error_carries_the_history() -> None:
    error = DivergedError("log_joint is NaN", 7, [3, 5], History(bound=[1.0]))
    assert (error.step, error.datapoints, error.history.bound) == (7, [3, 5], [1.0])
    assert str(error).startswith("training diverged at step 7, datapoint(s) 3, 5: log_joint is NaN. ")
    assert "step 7: " in str(DivergedError("x", 7, [], History()))


def test_nobody_is_blamed_when_all_rows_are_one_datapoint() -> None:
    """A row by itself does not fit the model, which is no fault of the row's."""
    model, q = conjugate_normal(10), MeanFieldNormal(1)
    with pytest.raises(DivergedError) as error:
        fit(
            lambda x: elbo(draw(model.given(x), q(), 4).log_weight),
            sgd(*q.parameters(), lr=1e6),
            torch.arange(10.0),
            num_steps=20,
        )
    assert error.value.datapoints == []


def test_nobody_is_blamed_when_the_parameters_are_bad_for_every_row() -> None:
    level = parameter(1.0)
    with pytest.raises(DivergedError) as error:
        fit(lambda x: -((x - level.log()) ** 2), sgd(level, lr=10.0), torch.tensor([-3.0, -5.0]), num_steps=9)
    assert error.value.datapoints == []


# --- The caller's mistakes -------------------------------------------------------------------------


def test_a_mistake_in_the_first_call_is_the_callers_error_not_a_divergence() -> None:
    model, q = conjugate_normal(3), MeanFieldNormal(1)
    with pytest.raises(ValueError, match="x must have shape"):
        fit(lambda x: elbo(draw(model.given(x), q()).log_weight), sgd(*q.parameters()), torch.ones(5), num_steps=3)


@pytest.mark.parametrize("shape", [(3, 1), (1,), (2,), (1, 3)], ids=str)
def test_an_objective_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    level = parameter()
    with pytest.raises(ValueError, match=r"objective must return one number per datapoint, shape \(3,\)"):
        fit(lambda x: level.expand(shape), sgd(level), torch.ones(3), num_steps=1)


def test_an_objective_that_does_not_depend_on_the_parameters_is_refused() -> None:
    level = parameter()
    with pytest.raises(ValueError, match="objective must depend on"):
        fit(lambda x: -(x**2), sgd(level), torch.ones(3), num_steps=1)


def test_an_error_of_another_kind_in_the_objective_passes_through() -> None:
    level = parameter()
    with pytest.raises(KeyError):
        fit(lambda x: {}["missing"], sgd(level), torch.ones(3), num_steps=1)  # type: ignore[index]
