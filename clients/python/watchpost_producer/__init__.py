"""Looks at pictures and videos, and hands what it finds to Watchpost."""
