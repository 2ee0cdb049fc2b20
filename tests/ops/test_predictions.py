import torch

from lgd.ops.predictions import flatten_predictions, promote, take_above, take_best, take_rows


def test_predictions_go_by_row_column_anchor():
    x = torch.arange(2 * 6 * 2 * 5).view(2, 6, 2, 5)  # 3 anchors of width 2 on 2 x 5 cells
    flat = flatten_predictions(x, 2)
    assert flat.shape == (2, 30, 2)
    image, row, column, anchor = 1, 1, 3, 2
    assert torch.equal(flat[image, (row * 5 + column) * 3 + anchor], x[image, 4:6, row, column])


def test_promotion():
    assert promote(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert promote(torch.zeros(1)).dtype == torch.float32
    assert promote(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_rows_are_taken_image_by_image():
    x = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    assert take_rows(x, torch.tensor([[1, 1, 0], [0, 1, 1]])).tolist() == [
        [[3, 4], [3, 4], [1, 2]],
        [[5, 6], [7, 8], [7, 8]],
    ]


def test_the_best_come_first_and_of_equals_the_first():
    scores = torch.tensor([[1.0, 3.0, 1.0, 2.0], [0.0, 0.0, 0.0, 5.0]])
    best, indices = take_best(scores, 3)
    assert best.tolist() == [[3, 2, 1], [5, 0, 0]]
    assert indices.tolist() == [[1, 3, 0], [3, 0, 1]]
    assert take_best(scores, 9)[0].shape == (2, 4)
    assert torch.equal(take_best(scores, 3, stable=False)[0], best)


def test_few_of_many_are_those_that_a_sorting_of_all_takes_first():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 30, (3, 500), generator=generator).float()
    scores[1] = -torch.inf
    scores[2, ::3] = torch.nan
    best, indices = take_best(scores, 60)
    expected = scores.nan_to_num(nan=-torch.inf, neginf=-torch.inf).sort(dim=1, descending=True, stable=True)
    assert torch.equal(best, expected.values[:, :60])
    assert torch.equal(indices, expected.indices[:, :60])


def test_what_scores_enough_stays_in_order():
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0], [0.0, torch.nan, 5.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    above, indices = take_above(scores, 1.0)
    assert above.tolist() == [[3.0, 2.0], [5.0, -torch.inf], [-torch.inf, -torch.inf]]
    assert indices.tolist() == [[1, 3], [2, 0], [0, 0]]
    assert take_above(scores, 9.0)[1].shape == (3, 0)
