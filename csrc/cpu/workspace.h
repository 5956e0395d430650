// Cuts the caller's working memory into buffers. The same cuts over no memory tell how many bytes are needed.
#pragma once

#include "gemm.h"

namespace vssn::VSSN_ISA {

class Arena {
  public:
    VSSN_INLINE explicit Arena(void* memory) : next_(reinterpret_cast<intptr_t>(memory)), begin_(next_) {
        next_ = round_up(next_, kAlign);
    }

    template <class T>
    VSSN_INLINE T* take(int64_t count) {
        T* buffer = reinterpret_cast<T*>(next_);
        next_ += round_up(count * static_cast<int64_t>(sizeof(T)), kAlign);
        return buffer;
    }

    VSSN_INLINE int64_t bytes() const { return next_ - begin_ + kAlign; }

  private:
    intptr_t next_, begin_;
};

}  // namespace vssn::VSSN_ISA
