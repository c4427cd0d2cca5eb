"""The names of jobs."""

from tasks.producer.job import LONGEST_ID, rejected_id


def test_the_job_of_refused_rows_has_one_name_that_fits() -> None:
    assert rejected_id("load.7") == "load.7.rejected"
    long = ["x" * LONGEST_ID, "y" * LONGEST_ID]
    names = [rejected_id(each) for each in long]
    assert names == [rejected_id(each) for each in long]
    assert len({*names, *long}) == 4
    assert all(len(each) <= LONGEST_ID for each in names)
