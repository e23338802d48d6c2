"""The checks of ``doctor`` that concern no single runtime: functions that return Checks.

``cli/doctor.py`` has the list of all of them. Those of a runtime are in its folder.
"""
