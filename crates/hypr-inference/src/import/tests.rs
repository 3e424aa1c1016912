//! Importers on small files made here; the real ones are in `tests/it`.
