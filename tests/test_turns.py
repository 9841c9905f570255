import pytest
import torch

from bnmlp.measurements.turns import change_energies, energies

pytestmark = pytest.mark.usefixtures("float64")


def test_energies_add_up_to_the_squared_norm():
    m = torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(energies(m).sum(0), m.square().sum((-2, -1)))


def test_a_small_turn_has_only_antisymmetric_energy_and_a_scaling_only_trace():
    a = torch.randn(5, 5)
    turn, deformation, trace = energies(a - a.mT)
    assert turn > 1 and deformation.abs() < 1e-12 and trace.abs() < 1e-12
    turn, deformation, trace = energies(3 * torch.eye(5))
    assert turn == 0 and deformation.abs() < 1e-12 and trace.item() == pytest.approx(45)


def test_energies_do_not_depend_on_the_basis():
    m, q = torch.randn(6, 6), torch.linalg.qr(torch.randn(6, 6))[0]
    torch.testing.assert_close(energies(q @ m @ q.mT), energies(m))


def test_a_change_that_turns_has_no_symmetric_part():
    w = torch.linalg.qr(torch.randn(3, 6, 6))[0]
    turn, stretch = (sign * torch.randn(3, 6, 6) for sign in (1, 1))
    turn, stretch = turn - turn.mT, stretch + stretch.mT
    change = (2 * turn + stretch) @ w
    whole, symmetric = change_energies(change, w)
    torch.testing.assert_close(whole, change.square().sum((-2, -1)))
    torch.testing.assert_close(symmetric, stretch.square().sum((-2, -1)))
    assert change_energies(turn @ w, w)[1].abs().max() < 1e-24
