"""Tests of the packages of kernelspecs."""
