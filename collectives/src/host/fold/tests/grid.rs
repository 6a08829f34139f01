//! Every type with every operator, on every level, over shapes and layouts.

use super::*;

const COUNTS: [usize; 14] = [0, 1, 2, 15, 16, 17, 63, 64, 65, 1000, 1023, 1024, 1025, 5000];

/// The layouts, one after the other: the grid goes through all of them many times, out of step with
/// its own dimensions.
struct Layouts(usize);

impl Layouts {
    fn next(&mut self, case: &Case) -> Layout {
        self.0 += 1;
        let size = case.dtype.size();
        let (shift, skew) = [(0, 0), (size, 0), (0, size), (1, 0), (size, 3)][self.0 % 5];
        let in_place = [None, Some(0), Some(case.from.len() - 1)][self.0 % 3];
        Layout { shift, skew, in_place, streaming: self.0.is_multiple_of(2) }
    }
}

fn grid(dtype: DataType) {
    let mut random = Random(dtype as u64);
    let mut layouts = Layouts(0);
    for op in OpKind::ALL {
        for sources in [1, 2, 3, 8] {
            for dests in [1, 2, 8] {
                for count in COUNTS {
                    let case = random.case(dtype, op, (sources, dests, count));
                    let layout = layouts.next(&case);
                    case.check(layout);
                }
            }
        }
    }
}

macro_rules! grids {
    ($($name:ident = $dtype:ident;)*) => {$(
        #[test]
        fn $name() {
            grid(DataType::$dtype);
        }
    )*};
}

grids! {
    i8_folds = I8;
    u8_folds = U8;
    i32_folds = I32;
    u32_folds = U32;
    i64_folds = I64;
    u64_folds = U64;
    f16_folds = F16;
    f32_folds = F32;
    f64_folds = F64;
    bf16_folds = Bf16;
    f8e4m3_folds = F8E4M3;
    f8e5m2_folds = F8E5M2;
}

/// What is hot, and what is easily wrong in it: all layouts of a sum of two.
#[test]
fn sums_of_two_in_every_layout() {
    let mut random = Random(77);
    for dtype in [DataType::F32, DataType::Bf16, DataType::F8E4M3, DataType::I64] {
        for shift in [0, 1, 4, 32, 60] {
            for skew in [0, 1, 16] {
                for in_place in [None, Some(0), Some(1)] {
                    for streaming in [false, true] {
                        let case = random.case(dtype, OpKind::Sum, (2, 1 + shift % 3, 1200));
                        case.check(Layout { shift, skew, in_place, streaming });
                    }
                }
            }
        }
    }
}

/// An element's result is the same wherever it lies: in a vector, in a tail, in any tile.
#[test]
fn a_result_does_not_depend_on_the_place() {
    let mut random = Random(5);
    for dtype in DataType::ALL {
        for op in OpKind::ALL {
            let one = random.case(dtype, op, (3, 1, 1));
            let element = oracle::expected(&one);
            let mut many = one.clone();
            many.count = 700;
            for (bytes, _) in &mut many.from {
                *bytes = bytes.repeat(many.count);
            }
            for level in Level::here() {
                let layout = Layout { shift: 4, skew: 8, in_place: None, streaming: false };
                let found = many.run(level, layout).swap_remove(0);
                many.compare(&element.repeat(many.count), &found, &format!("{level:?}"));
            }
        }
    }
}

#[test]
fn nothing_is_touched_beyond_the_operands() {
    let pages: Vec<memory::Page> = (0..3).map(|_| memory::Page::new()).collect();
    for dtype in DataType::ALL {
        for level in Level::here() {
            let fold = fold_at(level, dtype, OpKind::Sum);
            for count in [1, 7, 16, 33, 64, 100, 513, 1025] {
                for streaming in [false, true] {
                    let bytes = count * dtype.size();
                    for at in [|p: &memory::Page, _| p.start(), |p: &memory::Page, b| p.last(b)] {
                        let from: Vec<Source> = pages[..2]
                            .iter()
                            .map(|page| Source { at: at(page, bytes), partial: false, scale: 0 })
                            .collect();
                        let to = [Dest { at: at(&pages[2], bytes), partial: false }];
                        let args = FoldArgs { world: 1 };
                        // SAFETY: three pages that hold as many bytes.
                        unsafe { fold(&to, &from, count, &args, streaming) };
                    }
                }
            }
        }
    }
}
