import os

import pytest

from mmflow.data.sources.layout import LeftOut, files, find_folder


def is_layout(folder):
    return (folder / "wavs").is_dir()


def find(root):
    return find_folder(root, is_layout, "a folder wavs", "https://example.org", inner=("wavs",))


def test_files_are_sorted_and_hidden_ones_passed_over(put, tmp_path):
    names = ["b/2.wav", "b/1.WAV", "a.flac", "note.txt", ".hidden/3.wav", "b/._1.wav"]
    for name in names:
        put(name)
    found = files(tmp_path, [".wav", ".flac"], LeftOut("set"))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.flac", "b/1.WAV", "b/2.wav"]


def test_links_out_of_the_folder_dead_links_and_pipes_are_counted_and_not_followed(put, tmp_path):
    outside, inside = put("outside/secret.wav"), put("root/inside.wav")
    (tmp_path / "root" / "good.wav").symlink_to(inside)
    (tmp_path / "root" / "out.wav").symlink_to(outside)
    (tmp_path / "root" / "dead.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "root" / "loop.wav").symlink_to(tmp_path / "root" / "loop.wav")
    (tmp_path / "root" / "folder").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / "root" / "pipe.wav")
    left_out = LeftOut("set")
    assert [path.name for path in files(tmp_path / "root", [".wav"], left_out)] == ["good.wav", "inside.wav"]
    assert list(left_out.counts.values()) == [1, 3, 1]


def test_a_root_that_is_a_link_itself_is_followed(put, tmp_path):
    put("real/a.wav")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [path.name for path in files(tmp_path / "link", [".wav"], LeftOut("set"))] == ["a.wav"]


def test_the_log_has_one_line_per_reason_with_count_and_first_example(caplog):
    left_out = LeftOut("set")
    left_out.add("bad", "x")
    left_out.add("bad", "y")
    left_out.add("worse", "z")
    left_out.report()
    assert [r.message for r in caplog.records] == ["set: 2 x bad, first: x", "set: 1 x worse, first: z"]


def test_the_folder_itself_the_one_above_and_the_one_inside_all_lead_to_it(put, tmp_path):
    put("above/set/wavs/a.wav")
    expected = tmp_path / "above" / "set"
    assert find(expected) == find(tmp_path / "above") == find(expected / "wavs") == expected


def test_a_folder_without_the_layout_names_it_and_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path} does not hold a folder wavs.*--root \(https://example.org\)"):
        find(tmp_path)


def test_an_absent_root_is_named(tmp_path):
    with pytest.raises(ValueError, match="none is not a folder; expected a folder wavs"):
        find(tmp_path / "none")


def test_two_data_sets_in_one_folder_must_be_told_apart(put, tmp_path):
    put("one/wavs/a.wav")
    put("two/wavs/a.wav")
    with pytest.raises(ValueError, match="holds several data sets: one, two; name one"):
        find(tmp_path)
