//! Columns that outlive their names, types and neighbours.
//!
//! Each column of a table has a number that stays with it. `ALTER TABLE` changes the catalog and nothing else:
//! rows in memory are brought to the new columns when it is applied, rows in the log when it is replayed, and rows
//! in Lance when they are read. Lance knows the numbers too, as metadata of its fields, so that a version
//! written before an `ALTER` reads right after it:
//!
//! | a column that Lance has | is read as |
//! |---|---|
//! | under another name | itself |
//! | with a narrower type | itself, cast |
//! | not at all | its fill: the default it was added with, or NULL |
//!
//! A field of Lance keeps the SQL type of its column, too, so that an old version can be shown with the columns it had
//! ([`Layout::of_version`]), also those that are gone.
//!
//! Before the next flush writes rows, [`Evolution::of`] brings the schema inside Lance up to date: names, order
//! and dropped columns are a change of metadata; a widened column, or one with a default, gets a file of its own
//! for each fragment. No other column is read or written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, UInt32Array, new_null_array};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::take::take;
use hypr_common::{Error, Result};
use lance::Dataset;

use crate::ROW_ID_COLUMN;

/// Metadata of a Lance field: the number of the column it holds.
pub(crate) const COLUMN_ID_KEY: &str = "hypr.column_id";
/// Metadata of a Lance field: that of the column it holds, as a JSON object; none for a plain Arrow type.
const COLUMN_TYPE_KEY: &str = "hypr.column_type";
/// What columns are called in Lance while they are being added.
const ADDED_PREFIX: &str = "__hypr_column_";

/// The columns of a table and their numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layout {
    pub(crate) columns: SchemaRef,
    /// One for each column.
    pub(crate) ids: Vec<u32>,
    /// By number, what rows hold that were written before the column was there: an array of one value.
    pub(crate) fills: Arc<HashMap<u32, ArrayRef>>,
}

impl Layout {
    /// The columns that a table had when `dataset` was committed; `today` are its columns now.
    pub(crate) fn of_version(dataset: &Dataset, today: &Layout) -> Layout {
        let fields = numbered_fields(dataset).into_iter().filter(|(_, field)| !field.name().starts_with(ADDED_PREFIX));
        let (ids, fields): (Vec<u32>, Vec<Field>) = fields
            .map(|(id, field)| {
                let metadata = type_metadata(&field).or_else(|| {
                    let at = today.ids.iter().position(|known| *known == id)?;
                    let known = today.columns.field(at);
                    (known.data_type() == field.data_type()).then(|| known.metadata().clone())
                });
                (id, field.with_metadata(metadata.unwrap_or_default()))
            })
            .unzip();
        Layout { columns: Arc::new(Schema::new(fields)), ids, fills: Arc::clone(&today.fills) }
    }

    /// `count` values of column `at` for rows that lack it.
    pub(crate) fn fill(&self, at: usize, count: usize) -> Result<ArrayRef> {
        let data_type = self.columns.field(at).data_type();
        match self.fills.get(&self.ids[at]) {
            Some(value) => {
                let repeated = take(value, &UInt32Array::from_value(0, count), None)?;
                widen(&repeated, data_type)
            }
            None => Ok(new_null_array(data_type, count)),
        }
    }

    /// True when rows that lack column `at` do not have NULL there.
    pub(crate) fn has_fill(&self, at: usize) -> bool {
        self.fills.contains_key(&self.ids[at])
    }

    /// Columns, which have the layout `from`, as columns of this one.
    pub(crate) fn adopt(&self, columns: &[ArrayRef], rows: usize, from: &Layout) -> Result<Vec<ArrayRef>> {
        (0..self.ids.len())
            .map(|at| match from.ids.iter().position(|id| *id == self.ids[at]) {
                Some(before) => widen(&columns[before], self.columns.field(at).data_type()),
                None => self.fill(at, rows),
            })
            .collect()
    }
}

/// `array` as the wider type of its column.
pub(crate) fn widen(array: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    if array.data_type() == data_type {
        return Ok(Arc::clone(array));
    }
    let options = arrow_cast::CastOptions { safe: false, ..Default::default() };
    Ok(arrow_cast::cast_with_options(array, data_type, &options)?)
}

/// Types that hold every value of `from`.
pub(crate) fn is_wider(from: &DataType, to: &DataType) -> bool {
    use DataType as D;
    let int = |t: &D| match t {
        D::Int8 => Some((8, true)),
        D::Int16 => Some((16, true)),
        D::Int32 => Some((32, true)),
        D::Int64 => Some((64, true)),
        D::UInt8 => Some((8, false)),
        D::UInt16 => Some((16, false)),
        D::UInt32 => Some((32, false)),
        D::UInt64 => Some((64, false)),
        _ => None,
    };
    if let (Some((from, from_signed)), Some((to, to_signed))) = (int(from), int(to)) {
        return to >= from && from_signed == to_signed || to > from && to_signed;
    }
    match (from, to) {
        _ if from == to => true,
        (D::Float16, D::Float32 | D::Float64) | (D::Float32, D::Float64) => true,
        (D::Int8 | D::Int16 | D::UInt8 | D::UInt16, D::Float32 | D::Float64) => true,
        (D::Int32 | D::UInt32, D::Float64) => true,
        (D::Decimal128(p, s), D::Decimal128(q, t)) => {
            t >= s && i16::from(*q) - i16::from(*t) >= i16::from(*p) - i16::from(*s)
        }
        (other, D::Decimal128(q, t)) => {
            let digits = match int(other) {
                Some((8, _)) => 3,
                Some((16, _)) => 5,
                Some((32, _)) => 10,
                Some(_) => 20,
                None => return false,
            };
            i16::from(*q) - i16::from(*t) >= digits
        }
        (D::Date32, D::Timestamp(..)) => true,
        (D::Utf8, D::LargeUtf8) | (D::Binary, D::LargeBinary) => true,
        (_, D::Utf8) => int(from).is_some() || matches!(from, D::Boolean | D::Float32 | D::Float64 | D::Date32),
        _ => false,
    }
}

/// One value as the catalog keeps it.
pub(crate) fn encode_fill(value: &ArrayRef) -> Result<String> {
    let schema = Arc::new(Schema::new(vec![Field::new("fill", value.data_type().clone(), true)]));
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &schema)?;
    writer.write(&RecordBatch::try_new(schema, vec![Arc::clone(value)])?)?;
    writer.finish()?;
    drop(writer);
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The values of the catalog's form.
pub(crate) fn decode_fills(fills: &BTreeMap<String, String>) -> Result<Arc<HashMap<u32, ArrayRef>>> {
    let decode = |text: &String| -> Option<ArrayRef> {
        let digits = text.as_bytes().chunks_exact(2);
        let bytes = digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        let bytes = bytes.collect::<Option<Vec<u8>>>()?;
        let batch = StreamReader::try_new(bytes.as_slice(), None).ok()?.next()?.ok()?;
        (batch.num_rows() == 1).then(|| Arc::clone(batch.column(0)))
    };
    let decoded = fills.iter().map(|(id, text)| {
        let damaged = || Error::corrupted(format!("the default of column {id} in the catalog is damaged"));
        id.parse().ok().zip(decode(text)).ok_or_else(damaged)
    });
    decoded.collect::<Result<HashMap<_, _>>>().map(Arc::new)
}

/// What Lance has of a column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Physical {
    pub(crate) name: String,
    pub(crate) data_type: DataType,
    pub(crate) nullable: bool,
}

/// Which column each field of a Lance schema holds; the row id is none.
fn numbered_fields(dataset: &Dataset) -> Vec<(u32, Field)> {
    let fields: Vec<Field> =
        dataset.schema().fields.iter().filter(|field| field.name != ROW_ID_COLUMN).map(Field::from).collect();
    // Tables from before columns had numbers were never altered: the position is the number.
    (0..).zip(fields).map(|(at, field)| (number_of(&field).unwrap_or(at), field)).collect()
}

fn number_of(field: &Field) -> Option<u32> {
    field.metadata().get(COLUMN_ID_KEY)?.parse().ok()
}

/// The metadata of a Lance field that holds the column `field`.
fn lance_metadata(field: &Field, id: u32) -> HashMap<String, String> {
    let mut metadata = HashMap::from([(COLUMN_ID_KEY.to_owned(), id.to_string())]);
    if !field.metadata().is_empty() {
        let sorted: BTreeMap<&String, &String> = field.metadata().iter().collect();
        metadata.insert(COLUMN_TYPE_KEY.to_owned(), serde_json::json!(sorted).to_string());
    }
    metadata
}

/// The metadata of the column that a Lance field holds; `None` if it does not say.
fn type_metadata(field: &Field) -> Option<HashMap<String, String>> {
    serde_json::from_str(field.metadata().get(COLUMN_TYPE_KEY)?).ok()
}

/// What `dataset` has of each column.
pub(crate) fn physical_columns(dataset: &Dataset, layout: &Layout) -> Vec<Option<Physical>> {
    let fields = numbered_fields(dataset);
    let found = layout.ids.iter().zip(layout.columns.fields()).map(|(id, column)| {
        let mut same = fields.iter().filter(|(number, _)| number == id).map(|(_, field)| field);
        let exact = same.clone().find(|field| field.data_type() == column.data_type());
        exact.or_else(|| same.next())
    });
    found
        .map(|field| {
            field.map(|field| Physical {
                name: field.name().clone(),
                data_type: field.data_type().clone(),
                nullable: field.is_nullable(),
            })
        })
        .collect()
}

/// The fields of Lance that hold the columns at `projection`; those that it lacks are left out.
pub(crate) fn stored_fields(physical: &[Option<Physical>], projection: &[usize]) -> Vec<Field> {
    let stored = projection.iter().filter_map(|at| physical.get(*at)?.as_ref());
    stored.map(|column| Field::new(&column.name, column.data_type.clone(), column.nullable)).collect()
}

/// The columns at `projection` of `rows` rows, from what Lance gave for [`stored_fields`].
pub(crate) fn assemble(
    layout: &Layout,
    physical: &[Option<Physical>],
    projection: &[usize],
    stored: &[ArrayRef],
    rows: usize,
) -> Result<Vec<ArrayRef>> {
    let mut stored = stored.iter();
    let column = |at: &usize| match &physical[*at] {
        Some(_) => match stored.next() {
            Some(column) => widen(column, layout.columns.field(*at).data_type()),
            None => Err(Error::internal("Lance gave fewer columns than asked for")),
        },
        None => layout.fill(*at, rows),
    };
    projection.iter().map(column).collect()
}

/// The schema in which rows are written into Lance: no field metadata of Arrow's, because Lance gives
/// `arrow.json` a storage form of its own. A column that `dataset` lets be NULL stays so.
pub(crate) fn lance_schema(dataset: Option<&Dataset>, layout: &Layout) -> SchemaRef {
    let fields = layout.columns.fields().iter().zip(&layout.ids).map(|(field, id)| {
        let have = dataset.and_then(|dataset| dataset.schema().field(field.name()));
        let metadata = have.map_or_else(|| lance_metadata(field, *id), |have| have.metadata.clone());
        let nullable = have.map_or(field.is_nullable(), |have| have.nullable);
        field.as_ref().clone().with_metadata(metadata).with_nullable(nullable)
    });
    let mut fields: Vec<Field> = fields.collect();
    fields.push(crate::schema::row_id_field());
    Arc::new(Schema::new(fields))
}

/// What it takes to give a dataset the columns of a layout.
#[derive(Debug)]
pub(crate) struct Evolution {
    /// Columns that Lance lacks, or has with a narrower type.
    pub(crate) added: Vec<AddedColumn>,
}

/// A column to write into Lance, under a name that no column has.
#[derive(Debug)]
pub(crate) struct AddedColumn {
    pub(crate) field: Field,
    /// The narrower column it comes from, if it does not come from a fill.
    pub(crate) from: Option<String>,
    /// Position in the layout.
    pub(crate) at: usize,
}

impl AddedColumn {
    /// Computes the column for a batch of what it is made from.
    #[expect(clippy::type_complexity, reason = "the type that Lance asks for")]
    pub(crate) fn mapper(
        &self,
        layout: Layout,
        schema: SchemaRef,
    ) -> Box<dyn Fn(&RecordBatch) -> lance::Result<RecordBatch> + Send + Sync> {
        let (at, from_fill) = (self.at, self.from.is_none());
        Box::new(move |batch| {
            let column = match from_fill {
                true => layout.fill(at, batch.num_rows()),
                false => widen(batch.column(0), schema.field(0).data_type()),
            };
            let column = column.map_err(|error| lance::Error::invalid_input(error.to_string()))?;
            Ok(RecordBatch::try_new(Arc::clone(&schema), vec![column])?)
        })
    }
}

impl Evolution {
    /// `None` when `dataset` has the columns of `layout` already.
    pub(crate) fn of(dataset: &Dataset, layout: &Layout) -> Option<Self> {
        let fields = numbered_fields(dataset);
        let same = |(number, field): &(u32, Field), (id, column): (&u32, &Arc<Field>)| {
            number == id
                && field.name() == column.name()
                && field.data_type() == column.data_type()
                && (field.is_nullable() || !column.is_nullable())
        };
        let columns = || layout.ids.iter().zip(layout.columns.fields());
        if fields.len() == layout.ids.len() && fields.iter().zip(columns()).all(|(field, column)| same(field, column)) {
            return None;
        }
        let physical = physical_columns(dataset, layout);
        let added = columns().enumerate().filter_map(|(at, (id, column))| {
            let from = match &physical[at] {
                Some(have) if have.data_type == *column.data_type() => return None,
                Some(narrower) => Some(narrower.name.clone()),
                None => None,
            };
            let field = Field::new(format!("{ADDED_PREFIX}{id}"), column.data_type().clone(), true);
            Some(AddedColumn { field: field.with_metadata(lance_metadata(column, *id)), from, at })
        });
        Some(Self { added: added.collect() })
    }

    /// The schema of `dataset`, which has all columns by now, in the order and with the names of `layout`.
    pub(crate) fn target(dataset: &Dataset, layout: &Layout) -> Result<lance_core::datatypes::Schema> {
        let physical = physical_columns(dataset, layout);
        let mut schema = dataset.schema().clone();
        let take = |name: &str| {
            let field = schema.fields.iter().find(|field| field.name == name).cloned();
            field.ok_or_else(|| Error::internal(format!("column {name} vanished from a table")))
        };
        let mut fields = Vec::with_capacity(physical.len() + 1);
        for ((physical, id), column) in physical.iter().zip(&layout.ids).zip(layout.columns.fields()) {
            let have = physical.as_ref().ok_or_else(|| Error::internal("a new column was not written"))?;
            let mut field = take(&have.name)?;
            field.name.clone_from(column.name());
            field.nullable |= column.is_nullable();
            field.metadata.extend(lance_metadata(column, *id));
            fields.push(field);
        }
        fields.push(take(ROW_ID_COLUMN)?);
        schema.fields = fields;
        Ok(schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Int32Array, Int64Array, StringArray};

    fn layout(columns: &[(&str, DataType)], ids: &[u32], fills: HashMap<u32, ArrayRef>) -> Layout {
        let fields = columns.iter().map(|(name, data_type)| Field::new(*name, data_type.clone(), true));
        Layout { columns: Arc::new(Schema::new(fields.collect::<Vec<_>>())), ids: ids.to_vec(), fills: Arc::new(fills) }
    }

    #[test]
    fn rows_are_adopted_by_number() {
        let before = layout(&[("a", DataType::Int32), ("b", DataType::Utf8)], &[0, 1], HashMap::new());
        let fills: HashMap<u32, ArrayRef> = HashMap::from([(2, Arc::new(Int32Array::from(vec![7])) as ArrayRef)]);
        let after =
            layout(&[("b", DataType::Int32), ("wide", DataType::Int64), ("c", DataType::Utf8)], &[2, 0, 3], fills);
        let rows: Vec<ArrayRef> =
            vec![Arc::new(Int32Array::from(vec![1, 2])), Arc::new(StringArray::from(vec!["x", "y"]))];
        let adopted = after.adopt(&rows, 2, &before).unwrap();
        assert_eq!(*adopted[0], Int32Array::from(vec![7, 7]));
        assert_eq!(*adopted[1], Int64Array::from(vec![1, 2]));
        assert_eq!(adopted[2].null_count(), 2);
    }

    #[test]
    fn a_wider_type_holds_every_value_of_the_narrower() {
        use DataType as D;
        for (from, to) in [
            (D::Int32, D::Int64),
            (D::UInt32, D::Int64),
            (D::Float32, D::Float64),
            (D::Decimal128(5, 2), D::Decimal128(10, 2)),
            (D::Int32, D::Decimal128(12, 2)),
            (D::Int32, D::Utf8),
        ] {
            assert!(is_wider(&from, &to), "{from} {to}");
        }
        for (from, to) in [
            (D::Int64, D::Int32),
            (D::Int32, D::UInt64),
            (D::Int64, D::Float64),
            (D::Decimal128(5, 2), D::Decimal128(5, 3)),
            (D::Utf8, D::Int32),
        ] {
            assert!(!is_wider(&from, &to), "{from} {to}");
        }
    }

    #[test]
    fn fills_survive_the_catalog() {
        let value: ArrayRef = Arc::new(StringArray::from(vec!["a default"]));
        let stored = BTreeMap::from([("3".to_owned(), encode_fill(&value).unwrap())]);
        assert_eq!(*decode_fills(&stored).unwrap()[&3], *value);
        assert!(decode_fills(&BTreeMap::from([("3".to_owned(), "00".to_owned())])).is_err());
    }
}
