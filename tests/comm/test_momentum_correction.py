"""Top-k with momentum correction, against the two lines of its paper in float64."""

from types import SimpleNamespace

import torch
from torch import nn

from penstock.comm.gradients.bucket import Piece
from penstock.comm.gradients.residual import Residual

ROWS, COLUMNS, MOMENTUM = 6, 5, 0.9


def test_velocities_are_withheld_and_begin_anew_where_they_were_sent():
    matrix, vector = nn.Parameter(torch.zeros(ROWS, COLUMNS)), nn.Parameter(torch.zeros(4))
    own = torch.zeros(ROWS * COLUMNS + 4)
    parts = own.split([ROWS * COLUMNS, 4])
    bucket = SimpleNamespace(own=own, pieces=[Piece(matrix, parts[0].view(ROWS, COLUMNS)), Piece(vector, parts[1])])
    residual = Residual(bucket, lambda parameter: parameter is matrix, momentum=MOMENTUM)
    velocity, withheld = torch.zeros(2, ROWS * COLUMNS, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    for step in range(6):
        gradient = torch.randn(len(own), generator=generator)
        for attempt in range(2):  # what does not count leaves nothing behind
            residual.add(gradient if attempt else torch.full_like(gradient, 9.0))
            assert attempt == 0 or torch.equal(residual.whole_numbers(), gradient[-4:]), step
            sent = residual.becomes[: ROWS * COLUMNS].abs().topk(7).indices.sort().values
            values = residual.becomes[sent].clone()
            residual.sent(sent, values)
            residual.put_whole(residual.whole_numbers(), own)
        residual.commit()
        velocity = MOMENTUM * velocity + gradient[: ROWS * COLUMNS].double()
        total = withheld + velocity
        expected = total.abs().topk(7).indices.sort().values
        assert torch.equal(sent, expected)
        torch.testing.assert_close(values.double(), total[expected], rtol=1e-5, atol=1e-6)
        withheld = total.index_fill(0, expected, 0.0)
        velocity = velocity.index_fill(0, expected, 0.0)
        torch.testing.assert_close(residual.withheld[matrix].view(-1).double(), withheld, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(residual.velocity[matrix].view(-1).double(), velocity, rtol=1e-5, atol=1e-6)
