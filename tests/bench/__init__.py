"""Measured ratios: each comparison alternates its two sides several times in one run and reports medians."""
