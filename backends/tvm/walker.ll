; Runs a table of kernels on a team of threads: one parallel region for the whole table, a barrier after each kernel.
;
; frame:  0 ptr table, 8 i64 entries, 16 i32 threads wanted, 20 i32 error (0: none, else 1 + index of the entry),
;        24 ptr stamps (i64 per entry, or null), 64 i32 arrived, 128 i32 generation            (three cache lines)
; entry:  0 ptr function, 8 ptr arguments, 16 i32 count, 20 i32 barrier after it               (24 bytes)
; argument: TVMFFIAny, 16 bytes: i32 type (1 int, 4 pointer), i32 zero, i64 value; the first two are tid and nt.

declare void @GOMP_parallel(ptr, ptr, i32, i32)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare i32 @sched_yield()
declare i64 @llvm.readcyclecounter()
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define i32 @TVMFFIErrorSetRaisedFromCStrParts(ptr %kind, ptr %parts, i32 %n) {
  ret i32 0
}

define internal void @barrier(ptr %frame, i32 %n) {
entry:
  %arrived = getelementptr i8, ptr %frame, i64 64
  %generation = getelementptr i8, ptr %frame, i64 128
  %g = load atomic i32, ptr %generation acquire, align 4
  %old = atomicrmw add ptr %arrived, i32 1 acq_rel
  %last = sub i32 %n, 1
  %is.last = icmp eq i32 %old, %last
  br i1 %is.last, label %release, label %spin
release:
  store atomic i32 0, ptr %arrived release, align 4
  %next = atomicrmw add ptr %generation, i32 1 acq_rel
  ret void
spin:
  %i = phi i32 [ 0, %entry ], [ %i.next, %again ]
  %g.now = load atomic i32, ptr %generation acquire, align 4
  %same = icmp eq i32 %g.now, %g
  br i1 %same, label %wait, label %done
wait:
  call void asm sideeffect "pause", ""()
  %i.next = add i32 %i, 1
  %long = icmp ugt i32 %i.next, 2000
  br i1 %long, label %yield, label %again
yield:
  %ignored = call i32 @sched_yield()
  br label %again
again:
  br label %spin
done:
  ret void
}

define internal void @walk(ptr %frame) {
entry:
  %arguments = alloca [96 x i8], i64 16, align 64
  %result = alloca { i32, i32, i64 }, align 16
  store i32 0, ptr %result
  %tid = call i32 @omp_get_thread_num()
  %nt = call i32 @omp_get_num_threads()
  %tid.wide = sext i32 %tid to i64
  %nt.wide = sext i32 %nt to i64
  %is.first = icmp eq i32 %tid, 0
  %table = load ptr, ptr %frame
  %count.at = getelementptr i8, ptr %frame, i64 8
  %count = load i64, ptr %count.at
  %error.at = getelementptr i8, ptr %frame, i64 20
  %stamps.at = getelementptr i8, ptr %frame, i64 24
  %stamps = load ptr, ptr %stamps.at
  %stamped = icmp ne ptr %stamps, null
  %stamping = and i1 %stamped, %is.first
  %several = icmp sgt i32 %nt, 1
  %any = icmp sgt i64 %count, 0
  br i1 %any, label %loop, label %out
loop:
  %i = phi i64 [ 0, %entry ], [ %i.next, %continue ]
  %offset = mul i64 %i, 24
  %item = getelementptr i8, ptr %table, i64 %offset
  %function = load ptr, ptr %item
  %given.at = getelementptr i8, ptr %item, i64 8
  %given = load ptr, ptr %given.at
  %n.at = getelementptr i8, ptr %item, i64 16
  %n = load i32, ptr %n.at
  %barrier.at = getelementptr i8, ptr %item, i64 20
  %wants.barrier = load i32, ptr %barrier.at
  %n.wide = sext i32 %n to i64
  %size = mul i64 %n.wide, 16
  call void @llvm.memcpy.p0.p0.i64(ptr align 64 %arguments, ptr align 16 %given, i64 %size, i1 false)
  %tid.slot = getelementptr i8, ptr %arguments, i64 8
  store i64 %tid.wide, ptr %tid.slot
  %nt.slot = getelementptr i8, ptr %arguments, i64 24
  store i64 %nt.wide, ptr %nt.slot
  %code = call i32 %function(ptr null, ptr %arguments, i32 %n, ptr %result)
  %bad = icmp ne i32 %code, 0
  br i1 %bad, label %fail, label %after
fail:
  %i.narrow = trunc i64 %i to i32
  %mark = add i32 %i.narrow, 1
  store atomic i32 %mark, ptr %error.at release, align 4
  br label %after
after:
  %barred = icmp ne i32 %wants.barrier, 0
  %wait = and i1 %barred, %several
  br i1 %wait, label %hold, label %stamp.maybe
hold:
  call void @barrier(ptr %frame, i32 %nt)
  br label %stamp.maybe
stamp.maybe:
  br i1 %stamping, label %stamp, label %continue
stamp:
  %now = call i64 @llvm.readcyclecounter()
  %stamp.at = getelementptr i64, ptr %stamps, i64 %i
  store i64 %now, ptr %stamp.at
  br label %continue
continue:
  %i.next = add i64 %i, 1
  %more = icmp slt i64 %i.next, %count
  br i1 %more, label %loop, label %out
out:
  ret void
}

define i32 @irx_run(ptr %frame) {
  %nt.at = getelementptr i8, ptr %frame, i64 16
  %nt = load i32, ptr %nt.at
  %error.at = getelementptr i8, ptr %frame, i64 20
  store i32 0, ptr %error.at
  call void @GOMP_parallel(ptr @walk, ptr %frame, i32 %nt, i32 0)
  %error = load atomic i32, ptr %error.at acquire, align 4
  ret i32 %error
}

define i64 @irx_cycles() {
  %now = call i64 @llvm.readcyclecounter()
  ret i64 %now
}
