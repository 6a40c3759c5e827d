"""Runs the questions of a JSON file in DuckDB and prints the best time and the rows of each.

    python ask_duckdb.py WANTED.json

The measured time is that of storing the answer in a table in DuckDB; the rows are read afterwards.
Values are printed as texts, times as microseconds since 1970.
"""

import datetime
import json
import sys
import time

import duckdb

UTC = datetime.timezone.utc
BEGIN = datetime.datetime(1970, 1, 1, tzinfo=UTC)


def text(value):
    if isinstance(value, datetime.datetime):
        since = (value if value.tzinfo else value.replace(tzinfo=UTC)) - BEGIN
        return str(since // datetime.timedelta(microseconds=1))
    return str(value)


def main():
    with open(sys.argv[1]) as file:
        wanted = json.load(file)
    session = duckdb.connect()
    session.execute(f"SET threads = {wanted['threads']}; SET TimeZone = 'UTC'")
    files = ", ".join("'" + name.replace("'", "''") + "'" for name in wanted["files"])
    session.execute(f"CREATE VIEW positions AS SELECT * FROM read_parquet([{files}])")
    answers = []
    for question in wanted["questions"]:
        best = best_cpu = float("inf")
        for _ in range(wanted["rounds"]):
            since, cpu = time.perf_counter(), time.process_time()
            session.execute(f"CREATE OR REPLACE TEMP TABLE answer AS {question}")
            best = min(best, time.perf_counter() - since)
            best_cpu = min(best_cpu, time.process_time() - cpu)
        rows = session.execute("SELECT * FROM answer").fetchall()
        texts = [[text(v) for v in row] for row in rows]
        answers.append({"seconds": best, "cpu": best_cpu, "rows": texts})
    json.dump(answers, sys.stdout)


main()
