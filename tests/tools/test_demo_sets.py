from kd_convnext.common.tables import read_table
from kd_convnext.tools.demo_sets import SetSizes, draw_sets

SIZES = SetSizes(teacher=1.0, unlabelled=2.0, validation=0.5, test=1.0)
COUNTS = {"Grade 2": 3, "AIS": 1}


def test_no_lesion_is_in_two_sets_and_each_class_is_judged_by_as_many(tmp_path):
    sets = draw_sets(tmp_path, COUNTS, seed=1, sizes=SIZES)
    labelled, teacher, unlabelled = (read_table(path) for path in (sets.labelled, sets.teacher, sets.unlabelled))
    lesions = [set(table["lesion_id"]) for table in (labelled, teacher, unlabelled)]
    assert sum(map(len, lesions)) == len(set.union(*lesions))
    assert "label" not in unlabelled and len(lesions[2]) == 8
    per_part = labelled.drop_duplicates("lesion_id").groupby(["split", "label"]).size().to_dict()
    assert per_part == {
        ("train", "Grade 2"): 3,
        ("train", "AIS"): 1,
        **{("val", name): 1 for name in COUNTS},
        **{("test", name): 2 for name in COUNTS},
    }
    assert labelled.groupby("lesion_id")["split"].nunique().max() == 1
    assert teacher.drop_duplicates("lesion_id").groupby("label").size().to_dict() == dict.fromkeys(COUNTS, 2)


def test_equal_seeds_draw_equal_photographs_and_others_do_not(tmp_path):
    one, same = (draw_sets(tmp_path / name, COUNTS, seed=1, sizes=SIZES) for name in ("one", "same"))
    assert one.labelled.read_bytes() == same.labelled.read_bytes()
    other = draw_sets(tmp_path / "other", COUNTS, seed=2, sizes=SIZES)
    assert not set(read_table(one.labelled)["lesion_id"]) & set(read_table(other.labelled)["lesion_id"])
