"""Numbers and names as people write them."""

from fxtie.words import columns, list_names, list_tensors


def test_lists_of_names():
    def names(*numbers):
        return [f"a.{i}.b" for i in numbers]

    assert list_names(names(1)) == "a.1.b"
    assert list_names(names(1, 2)) == "a.1.b, a.2.b"
    assert list_names(names(1, 2, 3, 7)) == "a.1…3.b, a.7.b"
    assert list_names(names(1, 3, 5, 7)) == "a.1,3…7.b"
    assert list_names(["a.1.b1", "a.2.b2"]) == "a.1.b1, a.2.b2"
    squares = names(*(i * i for i in range(20)))
    assert list_names(squares).endswith("a.36.b, … a.361.b (20 in all)")


def test_names_with_two_indices():
    names = [f"a.{i}.b_{j}" for i in range(9) for j in (1, 2)]
    assert list_names(names) == "a.0…8.b_1, a.0…8.b_2"
    assert list_names([f"a.{i}.b_{i}" for i in range(3)]) == "a.0.b_0, a.1.b_1, a.2.b_2"


def test_lists_of_tensors():
    names = [f"a.{i}.{attr}" for i in range(9) for attr in ("weight", "bias")]
    assert list_tensors(names) == "a.0…8.weight, a.0…8.bias"


def test_columns():
    assert (columns("größe"), columns("层")) == (5, 2)
