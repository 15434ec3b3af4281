"""Numbers and names as people write them."""

from fxtie.words import list_names


def test_lists_of_names():
    def names(*numbers):
        return [f"a.{i}.b" for i in numbers]

    assert list_names(names(1)) == "a.1.b"
    assert list_names(names(1, 2)) == "a.1.b, a.2.b"
    assert list_names(names(1, 2, 3, 7)) == "a.1.b … a.3.b, a.7.b"
    assert list_names(names(1, 3, 5, 7)) == "a.1.b, a.3.b … a.7.b"
    assert list_names(["a.1.b1", "a.2.b2"]) == "a.1.b1, a.2.b2"
    squares = names(*(i * i for i in range(20)))
    assert list_names(squares).endswith("a.36.b, … a.361.b (20 in all)")
