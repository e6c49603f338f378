"""Files of mirrors: the shipped one, files of users, and addresses as lists have them."""

from __future__ import annotations

import pytest

from pipelines.data.mirrors import (
    SHIPPED,
    Split,
    choose_splits,
    file_name,
    list_archives,
    local_path,
    override_addresses,
    quote_address,
    read_mirror,
)

ADDRESS = "http://h/x.csv"


def write(tmp_path, text):
    path = tmp_path / "mirrors.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["k400", "k600", "k700", "k700_2020"])
def test_shipped_sets_have_the_splits_of_kinetics(name):
    mirror = read_mirror(name)
    assert list(mirror.splits) == ["train", "val", "test"]
    for split in mirror.splits.values():
        assert split.archives.endswith(f"{split.name}_path.txt")
        assert split.annotations.removesuffix(".csv").endswith((split.name, "validate"))
    assert bool(mirror.splits["train"].replacements) == (name == "k400")


def test_unknown_set_names_the_nearest():
    with pytest.raises(ValueError, match=r"mirrors\.yaml: unknown data set k40; did you mean k400\?"):
        read_mirror("k40")


def test_unknown_split_names_the_nearest():
    with pytest.raises(ValueError, match=r"split=vall,train: k400 has no split vall; did you mean val\?"):
        choose_splits(read_mirror("k400"), ["vall", "train"])
    assert [split.name for split in choose_splits(read_mirror("k400"), ["val", "val"])] == ["val"]


def test_file_of_a_user(tmp_path):
    text = (
        f"mine:\n  note: hello\n  splits:\n    a:\n      archives: ['http://h/1 2.tar']\n      annotations: {ADDRESS}\n"
    )
    mirror = read_mirror("mine", write(tmp_path, text))
    assert mirror.note == "hello"
    assert mirror.splits == {"a": Split("a", ("http://h/1%202.tar",), ADDRESS)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mirrors.yaml: expected sets such as k400, found None"),
        ("- a", "expected sets such as k400"),
        ("a: [", "not a readable YAML file"),
        ("a: {}", "a: expected splits, found {}"),
        ("a: {split: {}}", "a: unknown key split; did you mean splits?"),
        ("a: {splits: [train]}", "a: expected splits, such as train and val, found ['train']"),
        ("a: {splits: {t: {archive: x}}}", "a.t: unknown key archive; did you mean archives?"),
        (
            "a: {splits: {t: {archives: x}}}",
            "a.t.archives: x: expected an address that begins with http:// or https://",
        ),
        ("a: {splits: {t: {archives: http://h/l.txt}}}", "a.t.annotations: expected an address, got None"),
        ("a: {splits: {t: {archives: [1], annotations: x}}}", "a.t.archives: expected an address, got 1"),
        ("a: {splits: {../t: {archives: [1]}}}", "a.../t: not usable as a split's name"),
    ],
)
def test_malformed_file_is_refused_with_key_and_value(tmp_path, text, message):
    with pytest.raises(ValueError) as caught:
        read_mirror("a", write(tmp_path, text))
    assert message in str(caught.value)


def test_missing_file_is_refused(tmp_path):
    write(tmp_path, "a: b")
    with pytest.raises(ValueError, match=r"did you mean mirrors\.yaml"):
        read_mirror("a", tmp_path / "mirror.yaml")


def test_addresses_of_the_command_line_take_the_place_of_the_mirrors():
    train, val = choose_splits(read_mirror("k400", SHIPPED), ["train", "val"])
    assert override_addresses([train, val]) == [train, val]
    (changed,) = override_addresses([train], "http://h/l.txt", ADDRESS, ["http://h/r.tar"])
    assert changed == Split("train", "http://h/l.txt", ADDRESS, ("http://h/r.tar",))
    (changed,) = override_addresses([train], annotations=ADDRESS)
    assert changed == train._replace(annotations=ADDRESS)
    with pytest.raises(ValueError, match=f"annotations={ADDRESS}: expected a single split, got split=train,val"):
        override_addresses([train, val], annotations=ADDRESS)
    with pytest.raises(ValueError, match="archives: list.txt: expected an address"):
        override_addresses([train], archives="list.txt")


def test_list_of_archives_has_spaces_blank_lines_and_relative_addresses():
    """Kinetics-600 has one archive per class, named as the class."""
    text = "http://h/a (b).tar.gz\r\n\n  part%201.tgz \nhttps://other/x.tar"
    assert list_archives(text, "http://h/k/list.txt") == (
        "http://h/a%20(b).tar.gz",
        "http://h/k/part%201.tgz",
        "https://other/x.tar",
    )


def test_list_that_is_a_web_page_or_empty_is_refused():
    with pytest.raises(ValueError, match=r"l\.txt:2: expected the address of a \.tar\.gz, got '<html>'"):
        list_archives("\n<html>\n", "http://h/l.txt")
    with pytest.raises(ValueError, match="the list of archives is empty"):
        list_archives(" \n", "http://h/l.txt")


def test_address_is_quoted_once_and_ends_with_a_file():
    assert quote_address("http://h/50% of a b?x=1&y=%20") == "http://h/50%25%20of%20a%20b?x=1&y=%20"
    assert file_name("http://h/a/push%20up.tar.gz?x=y/z") == "push up.tar.gz"
    assert file_name("http://h/a%2F..%2Fb.tar") == "b.tar"
    for address in ("http://h/", "http://h/a/..", "http://h"):
        with pytest.raises(ValueError, match="expected an address that ends with the name of a file"):
            file_name(address)


def test_file_is_kept_under_the_host_and_the_folders_of_its_address():
    assert local_path("https://h:80/a/push up.tar.gz?x=y") == "h:80/a/push%20up.tar.gz"
    assert local_path("https://h//a/../../%2E%2E/b%2F..%2F..%2Fc.tar") == "h/a/%2E%2E/b%2F..%2F..%2Fc.tar"
    with pytest.raises(ValueError, match="expected an address that ends with the name of a file"):
        local_path("https://h/a/")
