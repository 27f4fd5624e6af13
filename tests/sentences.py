"""All that a report says, as one text."""


def told(report):
    return " ".join(report.verdict + report.notes)
