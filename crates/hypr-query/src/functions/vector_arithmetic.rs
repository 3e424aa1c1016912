//! `+`, `-`, `*`, `/` on vectors, element by element: between two vectors of one length, or a vector and a number,
//! which counts for every element. Arithmetic is in `f32`; NULL on either side gives NULL, and dividing by zero an
//! infinity, as it does for numbers of this type.

use std::sync::{Arc, LazyLock};

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, ArrayRef, Float32Array};
use arrow_cast::cast;
use arrow_schema::DataType;
use datafusion::common::{DFSchema, Result, exec_err, plan_err};
use datafusion::logical_expr::expr::Alias;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::sql::sqlparser::ast::BinaryOperator;
use hypr_common::types;

use super::vector::{VectorArg, all_constant, first_as_constant, is_vector_like};
use super::vector_scalar::{dynamic_vectors, fixed_vectors};

/// The four functions, under names that SQL can call too.
pub(super) fn all() -> Vec<Arc<ScalarUDF>> {
    OPERATIONS.map(Operation::function).to_vec()
}

/// Plans the four operators where a vector stands beside them.
#[derive(Debug)]
pub(crate) struct VectorOperators;

impl ExprPlanner for VectorOperators {
    fn plan_binary_op(&self, raw: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let Some(operation) = OPERATIONS.into_iter().find(|operation| operation.operator() == raw.op) else {
            return Ok(PlannerResult::Original(raw));
        };
        let (Ok(left), Ok(right)) = (raw.left.get_type(schema), raw.right.get_type(schema)) else {
            return Ok(PlannerResult::Original(raw));
        };
        let is_operand = |data_type: &DataType| data_type.is_numeric() || is_vector_like(data_type);
        if !(is_vector(&left) && is_operand(&right) || is_vector(&right) && is_operand(&left)) {
            return Ok(PlannerResult::Original(raw));
        }
        let title = format!("{} {} {}", raw.left.schema_name(), raw.op, raw.right.schema_name());
        let call = operation.function().call(vec![raw.left, raw.right]);
        // The alias is the column's default title.
        Ok(PlannerResult::Planned(Expr::Alias(Alias::new(call, None::<&str>, title))))
    }
}

/// Lists of numbers; text is a vector only where one is expected.
fn is_vector(data_type: &DataType) -> bool {
    data_type.is_list() && is_vector_like(data_type)
}

const OPERATIONS: [Operation; 4] = [Operation::Add, Operation::Subtract, Operation::Multiply, Operation::Divide];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
}

impl Operation {
    fn function(self) -> Arc<ScalarUDF> {
        static FUNCTIONS: LazyLock<[Arc<ScalarUDF>; 4]> = LazyLock::new(|| {
            OPERATIONS.map(|operation| {
                let signature = Signature::user_defined(Volatility::Immutable);
                Arc::new(ScalarUDF::from(VectorArithmetic { operation, signature }))
            })
        });
        Arc::clone(&FUNCTIONS[self as usize])
    }

    fn name(self) -> &'static str {
        match self {
            Operation::Add => "vector_add",
            Operation::Subtract => "vector_subtract",
            Operation::Multiply => "vector_multiply",
            Operation::Divide => "vector_divide",
        }
    }

    fn operator(self) -> BinaryOperator {
        match self {
            Operation::Add => BinaryOperator::Plus,
            Operation::Subtract => BinaryOperator::Minus,
            Operation::Multiply => BinaryOperator::Multiply,
            Operation::Divide => BinaryOperator::Divide,
        }
    }

    fn apply(self, a: f32, b: f32) -> f32 {
        match self {
            Operation::Add => a + b,
            Operation::Subtract => a - b,
            Operation::Multiply => a * b,
            Operation::Divide => a / b,
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct VectorArithmetic {
    operation: Operation,
    signature: Signature,
}

impl ScalarUDFImpl for VectorArithmetic {
    fn name(&self) -> &str {
        self.operation.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        let widths = arg_types.iter().filter_map(|data_type| match data_type {
            DataType::FixedSizeList(_, width) => Some(*width),
            _ => None,
        });
        Ok(widths.max().map_or_else(types::dynamic_vector_type, types::vector_type))
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let name = self.name();
        let [a, b] = arg_types else {
            return plan_err!("{name} takes two vectors, or a vector and a number, not {} arguments", arg_types.len());
        };
        for argument in [a, b] {
            if !argument.is_numeric() && !is_vector_like(argument) {
                return plan_err!("{name} takes vectors and numbers, not {argument}");
            }
        }
        if a.is_numeric() && b.is_numeric() {
            return plan_err!("{name} takes at least one vector");
        }
        if let (DataType::FixedSizeList(_, n), DataType::FixedSizeList(_, m)) = (a, b)
            && n != m
        {
            return plan_err!("the vectors have {n} and {m} dimensions");
        }
        Ok(arg_types.to_vec())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [a, b] = args.args.as_slice() else {
            return exec_err!("{} takes two arguments", self.name());
        };
        let constant = all_constant(&args.args);
        let rows = if constant { 1 } else { args.number_rows };
        let (a, b) = (Operand::new(a, rows)?, Operand::new(b, rows)?);
        let results = (0..rows).map(|row| self.row(&a, &b, row)).collect::<Result<Vec<_>>>()?;
        let result = match args.return_type() {
            DataType::FixedSizeList(_, width) => {
                if let Some(other) = results.iter().flatten().find(|vector| vector.len() != *width as usize) {
                    return exec_err!("the vectors have {width} and {} dimensions", other.len());
                }
                fixed_vectors(results.into_iter(), *width)
            }
            _ => dynamic_vectors(results.into_iter()),
        };
        if constant { first_as_constant(&result) } else { Ok(ColumnarValue::Array(result)) }
    }
}

impl VectorArithmetic {
    fn row(&self, a: &Operand, b: &Operand, row: usize) -> Result<Option<Vec<f32>>> {
        let apply = |a: f32, b: f32| self.operation.apply(a, b);
        Ok(match (a, b) {
            (Operand::Vector(a), Operand::Vector(b)) => match (a.get(row), b.get(row)) {
                (Some(a), Some(b)) if a.len() != b.len() => {
                    return exec_err!("the vectors have {} and {} dimensions", a.len(), b.len());
                }
                (Some(a), Some(b)) => Some(a.iter().zip(b).map(|(a, b)| apply(*a, *b)).collect()),
                _ => None,
            },
            (Operand::Vector(a), Operand::Number(b)) => {
                a.get(row).zip(number(b, row)).map(|(a, b)| a.iter().map(|a| apply(*a, b)).collect())
            }
            (Operand::Number(a), Operand::Vector(b)) => {
                number(a, row).zip(b.get(row)).map(|(a, b)| b.iter().map(|b| apply(a, *b)).collect())
            }
            (Operand::Number(_), Operand::Number(_)) => None,
        })
    }
}

enum Operand {
    Vector(VectorArg),
    Number(Float32Array),
}

impl Operand {
    fn new(value: &ColumnarValue, rows: usize) -> Result<Self> {
        if value.data_type().is_numeric() {
            let numbers: ArrayRef = cast(&value.to_array(rows)?, &DataType::Float32)?;
            return Ok(Self::Number(numbers.as_primitive::<Float32Type>().clone()));
        }
        VectorArg::new(value).map(Self::Vector)
    }
}

fn number(numbers: &Float32Array, row: usize) -> Option<f32> {
    numbers.is_valid(row).then(|| numbers.value(row))
}
